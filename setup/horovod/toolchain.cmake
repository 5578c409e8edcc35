# Named by CMAKE_TOOLCHAIN_FILE: has CMake read cxx20.cmake after each project() line, so Horovod's sources stay as they are.
set(CMAKE_PROJECT_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/cxx20.cmake")
