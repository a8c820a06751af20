# Installs the build into a fresh prefix and builds and runs outside programs against it.
# cmake -DBUILD=... -DSOURCE=... -DWORK=... -DCONFIG=... -DGENERATOR=... -DLIBTORCH_ROOT=... -P run.cmake
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${ARGV}\n${text}")
  endif()
  set(last_output "${text}" PARENT_SCOPE)
endfunction()

# build(<folder of SOURCE> <more arguments of configuring>...)
function(build name)
  run(${CMAKE_COMMAND} -S ${SOURCE}/${name} -B ${WORK}/${name} -G ${GENERATOR} -DCMAKE_BUILD_TYPE=${CONFIG}
      -DCMAKE_PREFIX_PATH=${WORK}/prefix ${ARGN})
  run(${CMAKE_COMMAND} --build ${WORK}/${name})
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix --component Unspecified)

build(consumer -DLIBTORCH_ROOT=${LIBTORCH_ROOT})
run(${WORK}/consumer/edit_vector)
if(NOT last_output MATCHES "reverted bit for bit")
  message(FATAL_ERROR "edit_vector printed: ${last_output}")
endif()

build(inspector -DCMAKE_DISABLE_FIND_PACKAGE_LibTorch=ON -DCMAKE_DISABLE_FIND_PACKAGE_HDF5=ON
      -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON)
run(${WORK}/inspector/write_tiny_model ${WORK}/model)
run(${WORK}/inspector/list_vectors ${WORK}/model)
if(NOT last_output STREQUAL "layers.0.attn.input_norm\nlayers.0.mlp.input_norm\nlayers.1.attn.input_norm\n\
layers.1.mlp.input_norm\nfinal_norm\n")
  message(FATAL_ERROR "list_vectors printed: ${last_output}")
endif()
