// expect: zipcache: uniform codes have 1 to 8 bits
#include <zipcache/zipcache.hpp>

int unused = zipcache::affine<9>::max_code;

int main() {}
