# cmake -DCOMPILER=… -DSOURCE=… -DOUTCOME=pass|fail -DINCLUDE_DIR=… -P check_compile.cmake
set(ENV{LC_ALL} C)  # the sentences of the compiler itself in English
execute_process(
  COMMAND "${COMPILER}" -std=c++20 -fsyntax-only -fno-rtti -Wall -Wextra -Wconversion -Wshadow -Werror
    "-I${INCLUDE_DIR}" "${SOURCE}"
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)

if(OUTCOME STREQUAL "pass")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${SOURCE} must compile, and does not:\n${output}")
  endif()
  return()
endif()

file(STRINGS "${SOURCE}" expectations REGEX "^// expect: ")
if(NOT expectations)
  message(FATAL_ERROR "${SOURCE} has no line \"// expect: <sentence>\".")
endif()
if(result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} must not compile, and does.")
endif()
foreach(expectation IN LISTS expectations)
  string(REGEX REPLACE "^// expect: " "" sentence "${expectation}")
  string(FIND "${output}" "${sentence}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "The error for ${SOURCE} must say\n  ${sentence}\nand says\n${output}")
  endif()
endforeach()
