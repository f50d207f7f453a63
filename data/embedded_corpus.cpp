#include "data/embedded_corpus.h"

// The assembler copies the file in, which takes no time and no memory however large it is.
asm(".section .rodata\n"
    ".global switchyard_embedded_corpus_begin\n"
    ".global switchyard_embedded_corpus_end\n"
    "switchyard_embedded_corpus_begin:\n"
    ".incbin \"" SWITCHYARD_EMBEDDED_CORPUS
    "\"\n"
    "switchyard_embedded_corpus_end:\n"
    ".byte 0\n"
    ".previous\n");

extern "C" {
extern const char switchyard_embedded_corpus_begin[];
extern const char switchyard_embedded_corpus_end[];
}

namespace switchyard::data {

std::string_view embedded_corpus_text() { return {switchyard_embedded_corpus_begin, switchyard_embedded_corpus_end}; }

}  // namespace switchyard::data
