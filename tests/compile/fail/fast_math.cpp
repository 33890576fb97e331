// expect: zipcache: compile without -ffast-math
#define __FAST_MATH__ 1  // what the flag defines
#include <zipcache/zipcache.hpp>

int main() {}
