// expect: zipcache: with<P> needs a policy that names its role, one of those in policy/roles.hpp
#include <zipcache/zipcache.hpp>

struct nameless {};

using wrong = zipcache::presets::paper::with<nameless>;
wrong* unused = nullptr;

int main() {}
