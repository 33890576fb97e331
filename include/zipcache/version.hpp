// The version of the library, in one place: CMake reads these three lines, the package file carries
// them, and a program can test them with the preprocessor.
#pragma once

#define ZIPCACHE_VERSION_MAJOR 0
#define ZIPCACHE_VERSION_MINOR 1
#define ZIPCACHE_VERSION_PATCH 0
