// The program of every consumer project: it prints the version that it was compiled with, and fails
// if that is not the version of the project that it asked for.
#include <cstdio>
#include <cstring>

#include <zipcache/version.hpp>
#include <zipcache/zipcache.hpp>

int main() {
  char version[32];
  std::snprintf(version, sizeof version, "%d.%d.%d", ZIPCACHE_VERSION_MAJOR, ZIPCACHE_VERSION_MINOR,
                ZIPCACHE_VERSION_PATCH);
  std::printf("zipcache %s\n", version);
  return std::strcmp(version, EXPECTED_VERSION) == 0 ? 0 : 1;
}
