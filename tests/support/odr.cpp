// The second translation unit of every test program: what a header defines without inline, the
// linker then finds twice.
#include <zipcache/zipcache.hpp>
