// expect: zipcache: an element is float, half or bfloat16
#include <zipcache/zipcache.hpp>

int unused = zipcache::from_float<int>(1.0f);

int main() {}
