// Everything that nvcc needs: the CPU's headers and their CUDA twins.
#pragma once

#include <zipcache/kv_cache.cuh>
#include <zipcache/store/transfer.cuh>
#include <zipcache/zipcache.hpp>
