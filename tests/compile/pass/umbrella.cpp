#include <zipcache/zipcache.hpp>

int main() {}
