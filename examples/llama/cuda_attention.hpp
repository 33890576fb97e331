// The cache and its attention on a GPU; the rest of the model stays where it is. Built only where
// CUDA is.
#pragma once

#include <memory>
#include <string>

#include "policy_cache.hpp"

namespace zipcache_llama {

// @param policy  a name of the registry; each costs minutes of compiling, so only some are there
// @param max_tokens  what the cache is sized for
// @throws std::invalid_argument for a policy that is not compiled for CUDA,
// zipcache::argument_error without a GPU
std::unique_ptr<policy_cache> make_cuda_cache(const std::string& policy,
                                              const attention_shape& shape,
                                              const policy_numbers& numbers, int max_tokens);

}  // namespace zipcache_llama
