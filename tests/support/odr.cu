// As odr.cpp, for the CUDA headers.
#include <zipcache/zipcache.cuh>
