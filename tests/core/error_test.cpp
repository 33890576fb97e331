#include <cstdint>

#include <zipcache/core/error.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("core: an error names the argument, what was given and what is allowed",
          "[core][error]") {
  CHECK_THROWS_WITH(detail::require_between("layer", 7, 0, 3),
                    "zipcache: layer is 7, but must be between 0 and 3");
  CHECK_THROWS_WITH(detail::require_equal("head_dim", 64, 128),
                    "zipcache: head_dim is 64, but must be 128");
  CHECK_NOTHROW(detail::require_between("layer", 0, 0, 3));
  CHECK_NOTHROW(detail::require_between("layer", 3, 0, 3));
  CHECK_THROWS_AS(detail::require_between("layer", int64_t{-1}, 0, 3), argument_error);
}

TEST_CASE("core: errors are the standard exceptions that their names suggest", "[core][error]") {
  CHECK(std::is_base_of_v<std::invalid_argument, argument_error>);
  CHECK(std::is_base_of_v<std::logic_error, state_error>);
  CHECK(std::is_base_of_v<std::runtime_error, capacity_error>);
}
