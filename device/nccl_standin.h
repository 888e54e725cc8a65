// SPDX-License-Identifier: Apache-2.0
// A stand-in for the part of NCCL that the program uses, for tests without a GPU: linked in its
// place, it offers the same C functions between processes of one host, over sockets and the memory
// of device/cuda_standin.h. A group is one piece of work on its stream, which goes on after the
// call.
//
// What NCCL documents, or is known to do, and what there is of it here; the test is that of
// nccl_standin_test.cc which shows it.
//
//   NCCL                                 here                         test
//   ------------------------------------ ---------------------------- ----------------------------
//   a communicator is made by all ranks  for 2 to 64 ranks; others,   MakesAPair, GathersAll,
//   together; with blocking = 0 the call and blocking = 1, are        RefusesWhatItHasNot
//   returns at once                      refused
//   until its state is success, no other ncclInvalidUsage, counted    NotBeforeItIsReady
//   call
//   a rank that never comes leaves init  likewise, until abort        InitWaitsUntilAbort
//   in progress
//   init may end with an error, later    Faults::init_error           InitEndsWithALateError
//   GroupEnd may return in progress:     always: on the stream with   GroupsReachTheirStreamLater
//   what was asked is on the stream once the second question
//   the state is success
//   groups run in the order of their     likewise                     GroupsRunInOrder
//   stream; sends and receives of a pair
//   meet in the order of the calls
//   a group's sends and receives go on   likewise                     BothWaysInOneGroup
//   side by side
//   a send may end before its receive is small ones do; with          SendsWaitForReceives
//   asked for, or wait for it            Faults::rendezvous none
//   AllGather brings every rank's part   as a group of sends and      GathersAll
//   to all, in place or not; ranks meet  receives
//   in the order of the calls
//   unequal sizes: undefined             ncclInvalidUsage; last_fault SizesMustAgree
//                                        has both numbers
//   buffers are of the device            ncclInvalidArgument          BuffersAreOfTheDevice
//   one thread at a time uses a          counted in misuses           all, at their end
//   communicator
//   GroupEnd may fail                    Faults::group_end_error      GroupEndMayFail
//   a communicator may end with an error the number in Machine::      ErrorsOfOneRank
//   at any time, on one rank alone       faults' file "nccl1", of one
//                                        on GPU 1
//   on a GPU that is lost every call     from work's calls            ErrorsOfOneRank
//   gives ncclUnhandledCudaError
//   a peer that dies: work hangs until   likewise; none with          DeathOfAPeer
//   abort; an async error over a         Faults::silent_death
//   network, none inside a host
//   abort ends work under way; buffers   likewise: what was received  AbortEndsWork
//   are undefined until it has returned, is overwritten just before;
//   which it may never do                Faults::abort_hangs
//   registration of buffers              checked and counted only     RegistersBuffers
//
// Not here: other collectives, blocking communicators, Finalize and Destroy, graphs, the GPU that
// kernels take while they wait, any speed.
#pragma once

#include <cstdint>
#include <string>

namespace penstock::nccl_standin {

// Of all communicators of this process, from now on. Errors are ncclResult_t. What a process begins
// with is in its environment: PENSTOCK_NCCL_FAULTS="rendezvous,silent_death,init_error=2".
struct Faults {
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
