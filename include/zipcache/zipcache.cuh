// Everything that nvcc needs: the CPU's headers and their CUDA twins.
#pragma once

#include <zipcache/kv_cache.cuh>
#include <zipcache/zipcache.hpp>
