#pragma once

namespace switchyard::train {

/// Lets threads that wait for others sleep instead of spin, unless the user chose by OMP_WAIT_POLICY or GOMP_SPINCOUNT.
/// Alone on a machine that costs next to nothing; where other programs run too, spinning threads take the processors
/// from the very threads they wait for, and training becomes several times slower. The OpenMP runtime reads its
/// environment before main(), so this starts the program anew: call it first in main(), with main's argv.
void sleep_while_waiting(char** argv);

}  // namespace switchyard::train
