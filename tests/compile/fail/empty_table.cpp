// expect: zipcache: a policy_table has at least one set of policies
#include <zipcache/zipcache.hpp>

zipcache::policy_table<> unused;

int main() {}
