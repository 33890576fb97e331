// The instruction sets that this processor has, one after the other.
#pragma once

#include <zipcache/detail/cpu_features.hpp>

#include "support/catch.hpp"

namespace zipcache_test {

/// Runs `work` with each supported set, and leaves the one that was in use before.
template <class Work>
void with_every_cpu(Work&& work) {
  using zipcache::detail::cpu_level;
  const cpu_level before = zipcache::detail::active_cpu();
  for (const cpu_level level : zipcache::detail::every_cpu_level) {
    if (level > zipcache::detail::supported_cpu()) continue;
    INFO("instruction set: " << zipcache::detail::name_of(level));
    zipcache::detail::active_cpu() = level;
    work();
  }
  zipcache::detail::active_cpu() = before;
}

}  // namespace zipcache_test
