# cmake -DZIPCACHE_LLAMA=<program> -P cmake/demo.cmake
# The main job: compare the cache policies on a real model and a real text. The target zipcache_demo calls
# this after it has built the program and fetched both. The command line of the demo stands here only.
cmake_minimum_required(VERSION 3.25)
include("${CMAKE_CURRENT_LIST_DIR}/assets.cmake")

cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH source_dir)
file(MAKE_DIRECTORY "${source_dir}/build/demo")

execute_process(
  COMMAND "${ZIPCACHE_LLAMA}" compare
    --model "${model}"
    --text "${text}"
    --policies paper,mikv,h2o,kivi_2bit,uniform_4bit,keys_4_values_2,rotated_keys_3_values_2,claims
    # 400 new tokens are two intervals of 160 that were compressed, and half of the next one in the window.
    --context 1024 --generated 400 --contexts 8
    --lines 12 --line-prompts 32
    --json build/demo/compare.jsonl
    --plot build/demo/saliency.svg
  WORKING_DIRECTORY "${source_dir}"
  RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "zipcache-llama compare failed: ${result}")
endif()
