// expect: zipcache: with<P> needs a policy that names its role, one of those in policy/roles.hpp
#include <zipcache/zipcache.hpp>

struct other_role {};
struct foreign {
  using role = other_role;
  static std::string name() { return "foreign"; }
};

using wrong = zipcache::presets::paper::with<foreign>;
wrong* unused = nullptr;

int main() {}
