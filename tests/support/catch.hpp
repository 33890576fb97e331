// The one header that includes Catch2. Debian 12 has 2.13, most others have 3.x: tests use what
// both have.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
