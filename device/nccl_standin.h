// SPDX-License-Identifier: Apache-2.0
// A stand-in for the part of NCCL that the program uses, for tests without a GPU: linked in its place,
// it offers the same C functions between processes of one host, over sockets and the memory of
// device/cuda_standin.h. A group is one piece of work on its stream, which goes on after the call.
//
// What NCCL documents, or is known to do, and what there is of it here; the test is that of
// nccl_standin_test.cc which shows it.
//
//   NCCL                                              here                           test
//   a communicator is made by all ranks together;     for two ranks; others are      MakesAPair,
//     with blocking = 0 the call returns at once        refused, and blocking = 1    RefusesWhatItHasNot
//   until its state is success, no other call         ncclInvalidUsage, counted      NotBeforeItIsReady
//   a rank that never comes leaves init in progress   likewise, until abort          InitWaitsUntilAbort
//   init may end with an error, later                 Faults::init_error             InitEndsWithALateError
//   GroupEnd may return in progress: what was asked   always: on the stream with     GroupsReachTheirStreamLater
//     is on the stream once the state is success        the second question
//   groups run in the order of their stream           likewise                       GroupsRunInOrder
//   sends and receives between two ranks meet in      likewise                       GroupsRunInOrder
//     the order in which they were asked
//   a group's sends and receives go on side by side   likewise                       BothWaysInOneGroup
//   a send may end before its receive is asked for,   small ones do, or with         SendsWaitForReceives
//     or wait for it                                    Faults::rendezvous none
//   unequal sizes: undefined                          ncclInvalidUsage, with both    SizesMustAgree
//                                                       numbers in last_fault
//   buffers are of the device                         ncclInvalidArgument            BuffersAreOfTheDevice
//   one thread at a time uses a communicator          counted in misuses             (all)
//   GroupEnd may fail                                 Faults::group_end_error        GroupEndMayFail
//   a peer that dies: work hangs until abort; an      likewise; none with            DeathOfAPeer
//     async error over a network, none inside a host    Faults::silent_death
//   abort ends work under way; buffers are undefined  likewise; what was received    AbortEndsWork
//     until it has returned, which it may never do      is overwritten just before;
//                                                       Faults::abort_hangs
//   registration of buffers                           checked and counted only       RegistersBuffers
//
// Not here: more than two ranks, collectives, blocking communicators, Finalize and Destroy, graphs,
// the GPU that kernels take while they wait, any speed.
#pragma once

#include <cstdint>
#include <string>

namespace penstock::nccl_standin {

// Of all communicators of this process, from now on. Errors are ncclResult_t.
struct Faults {
  int version = 0;            // Of ncclGetVersion; 0: the header's.
  bool rendezvous = false;    // No send ends before its receive was asked for.
  bool silent_death = false;  // A peer that is gone gives no error.
  int init_error = 0;         // How init ends.
  int group_end_error = 0;    // Of each ncclGroupEnd.
  bool abort_hangs = false;   // Until this is taken back.
};
void Set(const Faults& faults);

struct Counts {
  std::int64_t comms = 0;  // There now.
  std::int64_t registrations = 0;
  std::int64_t groups = 0;  // Ever put onto a stream.
  std::int64_t aborts = 0;  // Ever begun.
  std::int64_t misuses = 0;
  std::string last_fault;
};
Counts Now();

}  // namespace penstock::nccl_standin
