# Installs the build into a fresh prefix and builds and runs an outside program against it.
# cmake -DBUILD=... -DSOURCE=... -DWORK=... -DCONFIG=... -DGENERATOR=... -DLIBTORCH_ROOT=... -P run.cmake
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${ARGV}\n${text}")
  endif()
  set(last_output "${text}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix --component Unspecified)
run(${CMAKE_COMMAND} -S ${SOURCE}/consumer -B ${WORK}/build -G ${GENERATOR} -DCMAKE_BUILD_TYPE=${CONFIG}
    -DCMAKE_PREFIX_PATH=${WORK}/prefix -DLIBTORCH_ROOT=${LIBTORCH_ROOT})
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${WORK}/build/edit_vector)
if(NOT last_output MATCHES "reverted bit for bit")
  message(FATAL_ERROR "edit_vector printed: ${last_output}")
endif()
