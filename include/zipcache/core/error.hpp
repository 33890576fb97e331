// What the library throws, and how a message is put together: the argument's name, what was given,
// what is allowed. Every check runs before anything changes, so a caller who catches one of these
// still holds a valid cache.
#pragma once

#include <stdexcept>
#include <string>

namespace zipcache {

/// A bad argument: wrong size, out of range, not finite, or not supported. Nothing was changed.
class argument_error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// A call that the sequence's state does not allow, such as a second prefill. Nothing was changed.
class state_error : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// The page pool has no room left. Nothing was changed.
class capacity_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {

template <class Given>
[[noreturn]] inline void refuse(const char* argument, const Given& given, const char* allowed) {
  throw argument_error(std::string("zipcache: ") + argument + " is " + std::to_string(given) +
                       ", but must be " + allowed);
}

inline void require(bool condition, const std::string& sentence) {
  if (!condition) throw argument_error("zipcache: " + sentence);
}

template <class Given, class Bound>
inline void require_between(const char* argument, Given given, Bound least, Bound most) {
  if (given < static_cast<Given>(least) || given > static_cast<Given>(most)) {
    refuse(argument, given,
           ("between " + std::to_string(least) + " and " + std::to_string(most)).c_str());
  }
}

template <class Given, class Wanted>
inline void require_equal(const char* argument, Given given, Wanted wanted) {
  if (given != static_cast<Given>(wanted)) refuse(argument, given, std::to_string(wanted).c_str());
}

}  // namespace detail
}  // namespace zipcache
