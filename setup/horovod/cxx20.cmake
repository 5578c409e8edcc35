# Horovod 0.28.1 asks for C++11 to C++17, by name; PyTorch's headers of today need C++20.
set(CMAKE_CXX11_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CXX17_STANDARD_COMPILE_OPTION "-std=c++20")

# Horovod always builds RelWithDebInfo, and turns its -O2 into -O3. Without debug information (-g) the build is
# quicker and the wheel 1 MB instead of 19.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")
