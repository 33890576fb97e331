#include "ablation_record.hpp"

#include <limits>
#include <stdexcept>
#include <string_view>

#include "comparison_object.hpp"
#include "text_file.hpp"

namespace zipcache_llama {
namespace {

using nlohmann::ordered_json;

double bits_of(const zipcache::footprint& footprint) { return 16 / footprint.ratio(); }

interval interval_over_windows(const std::vector<double>& values, std::uint64_t seed) {
  constexpr double not_measured = std::numeric_limits<double>::quiet_NaN();
  return values.empty() ? interval{not_measured, not_measured, not_measured}
                        : bootstrap_interval(values, seed);
}

ordered_json layers_or_null(const std::optional<raised_layers>& raised) {
  return raised ? ordered_json{{"first", raised->first},
                               {"middle", raised->middle},
                               {"last", raised->last}}
                : ordered_json();
}

// Lines of before there were raised layers have none.
std::optional<raised_layers> layers_in(const ordered_json& object) {
  const auto layers = object.find("raised_layers");
  if (layers == object.end() || layers->is_null()) {
    return std::nullopt;
  }
  return raised_layers{layers->at("first").get<int>(), layers->at("middle").get<int>(),
                       layers->at("last").get<int>()};
}

template <class T>
ordered_json number_or_null(const std::optional<T>& value) {
  return value ? ordered_json(*value) : ordered_json();
}

template <class T>
std::optional<T> optional_at(const ordered_json& object, const char* field) {
  const auto& value = object.at(field);
  return value.is_null() ? std::nullopt : std::optional(value.get<T>());
}

// As optional_at, and for lines of before there was the field.
template <class T>
std::optional<T> optional_in(const ordered_json& object, const char* field) {
  return object.contains(field) ? optional_at<T>(object, field) : std::nullopt;
}

// A number that is not finite is written as null.
double number_at(const ordered_json& object, const char* field) {
  return optional_at<double>(object, field).value_or(std::numeric_limits<double>::quiet_NaN());
}

// The experiments that a cell is part of, whether they were asked for or not.
ordered_json memberships(const cell_key& key, double bits_per_value,
                         const ablation_settings& settings) {
  auto list = ordered_json::array();
  for (const auto& experiment : all_experiments()) {
    for (const auto& variant : experiment.variants) {
      if (key_of(experiment, variant, key.context, settings) == key) {
        ordered_json member;
        member["experiment"] = experiment.name;
        member["label"] = variant.label;
        member["x"] = experiment.x == chart_x::number           ? ordered_json(variant.x)
                      : experiment.x == chart_x::bits_per_value ? ordered_json(bits_per_value)
                                                                : ordered_json();
        list.push_back(std::move(member));
      }
    }
  }
  return list;
}

void put_along(ordered_json& object, const policy_result& result, std::uint64_t seed) {
  auto means = ordered_json::array();
  auto lows = ordered_json::array();
  auto highs = ordered_json::array();
  const std::size_t stretches = result.kl_along.empty() ? 0 : result.kl_along[0].size();
  for (std::size_t stretch = 0; stretch < stretches; ++stretch) {
    std::vector<double> values;
    for (const auto& window : result.kl_along) {
      values.push_back(window[stretch]);
    }
    const auto kl = bootstrap_interval(values, seed);
    means.push_back(kl.mean);
    lows.push_back(kl.low);
    highs.push_back(kl.high);
  }
  object["kl_by_hundred"] = std::move(means);
  object["kl_by_hundred_low"] = std::move(lows);
  object["kl_by_hundred_high"] = std::move(highs);
}

std::vector<interval> along_of(const ordered_json& object) {
  const auto& means = object.at("kl_by_hundred");
  std::vector<interval> along;
  for (std::size_t i = 0; i < means.size(); ++i) {
    along.push_back({means.at(i).get<double>(), object.at("kl_by_hundred_low").at(i).get<double>(),
                     object.at("kl_by_hundred_high").at(i).get<double>()});
  }
  return along;
}

cell_key key_in(const ordered_json& object) {
  return {.policy = object.at("policy").get<std::string>(),
          .policies = object.at("policies").get<std::string>(),
          .numbers = {optional_at<double>(object, "salient_ratio"),
                      optional_at<std::int64_t>(object, "recompress_interval"),
                      optional_in<std::int64_t>(object, "max_probes"), layers_in(object)},
          .context = object.at("context").get<int>(),
          .generated = object.at("generated").get<int>(),
          .windows = object.at("contexts").get<int>(),
          .lines = object.at("lines").get<int>(),
          .line_prompts = object.at("line_prompts").get<int>(),
          .seed = object.at("seed").get<std::uint64_t>(),
          .model = object.at("model").get<std::string>(),
          .model_bytes = object.at("model_bytes").get<std::uint64_t>(),
          .text_bytes = object.at("text_bytes").get<std::uint64_t>()};
}

measured_cell cell_in(const ordered_json& object) {
  measured_cell cell;
  cell.key = key_in(object);
  cell.bits_per_value = number_at(object, "bits_per_value");
  cell.bits_per_value_prefill = number_at(object, "bits_per_value_prefill");
  cell.ratio_allocated = number_at(object, "ratio_allocated");
  cell.ratio_paper = optional_at<double>(object, "ratio_paper");
  cell.perplexity = number_at(object, "perplexity");
  cell.perplexity_fp16 = number_at(object, "perplexity_fp16");
  const auto interval_at = [&](const char* mean, const char* low, const char* high) {
    return interval{number_at(object, mean), number_at(object, low), number_at(object, high)};
  };
  cell.kl = interval_at("kl_mean", "kl_low", "kl_high");
  cell.kl_by_window = object.at("kl_by_window").get<std::vector<double>>();
  cell.top1 = interval_at("top1_agreement", "top1_low", "top1_high");
  if (!object.at("retrieval_accuracy").is_null()) {
    cell.retrieval = interval_at("retrieval_accuracy", "retrieval_low", "retrieval_high");
    cell.retrieval_fp16 = number_at(object, "retrieval_accuracy_fp16");
  }
  cell.kl_along = along_of(object);
  return cell;
}

}  // namespace

std::string record_line(const ablation_cell& cell, const policy_result& result,
                        const policy_result& reference, const report_settings& settings,
                        const ablation_settings& ablation) {
  const double bits_per_value = bits_of(result.after_decode);
  ordered_json object;
  object["experiments"] = memberships(cell.key, bits_per_value, ablation);
  object.update(comparison_object(result, reference, settings));
  object["policy"] = cell.key.policy;  // not the label
  object["bits_per_value"] = bits_per_value;
  object["bits_per_value_prefill"] = bits_of(result.after_prefill);
  const auto kl = interval_over_windows(result.kl, settings.seed);
  object["kl_low"] = kl.low;
  object["kl_high"] = kl.high;
  const auto top1 = interval_over_windows(result.top1, settings.seed);
  object["top1_low"] = top1.low;
  object["top1_high"] = top1.high;
  const bool found_lines = !result.retrieved.empty();
  const interval retrieval = found_lines ? retrieval_interval(result) : interval{};
  object["retrieval_low"] = found_lines ? ordered_json(retrieval.low) : ordered_json();
  object["retrieval_high"] = found_lines ? ordered_json(retrieval.high) : ordered_json();
  put_along(object, result, settings.seed);
  object["kl_by_window"] = result.kl;  // for paired differences
  object["policies"] = cell.key.policies;
  object["salient_ratio"] = number_or_null(cell.key.numbers.salient_ratio);
  object["recompress_interval"] = number_or_null(cell.key.numbers.recompress_interval);
  object["max_probes"] = number_or_null(cell.key.numbers.max_probes);
  object["raised_layers"] = layers_or_null(cell.key.numbers.raised);
  object["contexts"] = cell.key.windows;
  object["lines"] = cell.key.lines;
  object["line_prompts"] = cell.key.line_prompts;
  object["seed"] = cell.key.seed;
  object["model"] = cell.key.model;
  object["model_bytes"] = cell.key.model_bytes;
  object["text_bytes"] = cell.key.text_bytes;
  return object.dump() + '\n';
}

ablation_records read_records(const std::filesystem::path& path) {
  ablation_records records;
  if (!std::filesystem::exists(path)) {
    return records;
  }
  const std::string content = read_text_file(path);
  std::size_t start = 0;
  for (int line = 1;; ++line) {
    const std::size_t end = content.find('\n', start);
    if (end == std::string::npos) {
      break;
    }
    try {
      auto cell =
          cell_in(ordered_json::parse(std::string_view(content).substr(start, end - start)));
      records.cells.insert_or_assign(cell.key, std::move(cell));
    } catch (const nlohmann::json::exception& error) {
      throw std::runtime_error(path.string() + ":" + std::to_string(line) +
                               ": not a measured cell; remove the line to go on (" + error.what() +
                               ")");
    }
    start = end + 1;
  }
  records.whole_bytes = start;
  records.is_torn = start < content.size();
  return records;
}

}  // namespace zipcache_llama
