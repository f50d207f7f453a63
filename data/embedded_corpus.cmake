# Gives data/embedded_corpus.cpp its text: the repository's own sources, documentation and configurations, joined into
# one file with "<|doc|>" lines between them. Run as a script (cmake -P) this file does the joining itself.

if(CMAKE_SCRIPT_MODE_FILE)
  file(STRINGS "${LIST}" names)
  set(text "")
  foreach(name IN LISTS names)
    file(READ "${SOURCE_DIR}/${name}" document)
    string(REGEX REPLACE "^\n+" "" document "${document}")
    string(REGEX REPLACE "\n+$" "" document "${document}")
    if(text AND document)
      string(APPEND text "\n\n<|doc|>\n")
    endif()
    string(APPEND text "${document}")
  endforeach()
  file(WRITE "${OUTPUT}" "${text}\n")
  return()
endif()

set(patterns "")
foreach(folder IN ITEMS core cuda autograd nn distributed moe data train examples docs configs)
  foreach(ending IN ITEMS h cpp cuh cu md json)
    list(APPEND patterns ${folder}/*.${ending})
  endforeach()
endforeach()
list(TRANSFORM patterns PREPEND ${PROJECT_SOURCE_DIR}/)
file(GLOB_RECURSE corpus_files CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} ${patterns} ${PROJECT_SOURCE_DIR}/README.md)
list(SORT corpus_files)

set(corpus_list ${PROJECT_BINARY_DIR}/embedded_corpus_files.txt)
set(corpus_text ${PROJECT_BINARY_DIR}/embedded_corpus.txt)
list(JOIN corpus_files "\n" corpus_lines)
file(CONFIGURE OUTPUT ${corpus_list} CONTENT "${corpus_lines}\n" @ONLY)
list(TRANSFORM corpus_files PREPEND ${PROJECT_SOURCE_DIR}/)
add_custom_command(
  OUTPUT ${corpus_text}
  COMMAND ${CMAKE_COMMAND} -DSOURCE_DIR=${PROJECT_SOURCE_DIR} -DLIST=${corpus_list} -DOUTPUT=${corpus_text} -P
          ${CMAKE_CURRENT_LIST_FILE}
  DEPENDS ${corpus_files} ${corpus_list} ${CMAKE_CURRENT_LIST_FILE}
  COMMENT "Joining the repository's text into the embedded corpus"
  VERBATIM)
set_source_files_properties(
  ${PROJECT_SOURCE_DIR}/data/embedded_corpus.cpp PROPERTIES OBJECT_DEPENDS ${corpus_text} COMPILE_DEFINITIONS
                                                            "SWITCHYARD_EMBEDDED_CORPUS=\"${corpus_text}\"")
# As a source of the target, the text is built by this target's own rules, whatever the generator.
target_sources(switchyard_data PRIVATE ${corpus_text})
