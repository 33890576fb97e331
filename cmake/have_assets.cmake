# cmake -P cmake/have_assets.cmake: succeeds where the demo needs nothing from the network.
include("${CMAKE_CURRENT_LIST_DIR}/assets.cmake")
if(NOT EXISTS "${model}" OR NOT EXISTS "${text}")
  message(FATAL_ERROR "The model or the text is not in ${cache_dir}.")
endif()
