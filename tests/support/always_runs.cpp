#include "support/skip_reason.hpp"

const char* zipcache_test::skip_reason() { return nullptr; }
