include(CMakePackageConfigHelpers)
foreach(folder core hooks analysis edits trainer)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/scalevec
          FILES_MATCHING PATTERN "*.h")
endforeach()
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/scalevec-config.cmake.in ${PROJECT_BINARY_DIR}/scalevec-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/scalevec)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/scalevec-config-version.cmake COMPATIBILITY SameMinorVersion)
install(EXPORT scalevec-targets NAMESPACE scalevec:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/scalevec)
install(FILES ${PROJECT_BINARY_DIR}/scalevec-config.cmake ${PROJECT_BINARY_DIR}/scalevec-config-version.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindLibTorch.cmake ${PROJECT_SOURCE_DIR}/cmake/find_torch.py
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/scalevec)
