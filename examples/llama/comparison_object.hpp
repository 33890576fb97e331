// One line of comparison_json as an object, for those who add fields to it.
#pragma once

#include <nlohmann/json.hpp>

#include "comparison_report.hpp"

namespace zipcache_llama {

nlohmann::ordered_json comparison_object(const policy_result& result,
                                         const policy_result& reference,
                                         const report_settings& settings);

}  // namespace zipcache_llama
