// SPDX-License-Identifier: Apache-2.0

// Package volume provides the file system calls of a cache on its volume. Each call has a deadline, because a system
// call on a frozen or unreachable volume blocks without limit and cannot be interrupted.
//
// # Calls
//
// FS has the calls on paths, File has the calls on an open file. Both replace the functions of package os with the same
// semantics and the same errors: errors.Is(err, fs.ErrNotExist), syscall.ENOSPC and so on hold. There is one more error:
// if a call does not end within its deadline, it returns an error that wraps ErrHung.
//
// A call runs in a worker goroutine. After its deadline the caller continues, and the worker stays blocked in the system
// call: the call is abandoned. The number of workers is bounded (Options.MaxCalls). An abandoned call can still take
// effect later. The package reverts its effect where a leak would result: a file that opens late is closed, a temporary
// file that is created late is removed. A rename, a removal or a new directory is not reverted. Callers must tolerate
// that, which is simple if a path only ever gets complete content: write a temporary file, sync it, rename it.
//
// A File is unusable after an abandoned write or sync: each later Write, WriteAt, Trim and Sync fails with ErrHung, so
// that a file with unknown content is never synced and renamed. The caller must not modify a buffer that it has passed to
// an abandoned write.
//
// # Hung volumes
//
// The volume is hung from the first abandoned call, or from the first probe without a result, until a probe succeeds.
// While it is hung, all calls fail immediately with ErrHung, so a caller can always try the volume first: a hung volume
// costs one deadline once, and nothing afterwards. Monitor probes the volume periodically, so a hung volume without
// traffic is detected within 5 s with the default options, and its recovery as well. Health returns the result.
//
// # Sending files
//
// File implements syscall.Conn, so package net sends it with sendfile(2). sendfile runs in the goroutine of the request
// and has no deadline. Two rules bound it:
//
//   - While the volume is hung, sendfile is not started; package net then calls Read, which fails with ErrHung.
//   - A handler that calls File.Guard before it sends a file gets a callback while a sendfile call is in progress for
//     longer than the deadline. The callback shuts the connection down (shutdown(2), because Close of a net.Conn waits for
//     the running sendfile). The client receives fewer bytes than Content-Length and resumes with a Range request. That
//     request finds the volume hung and is answered with a 5xx status, so containerd continues with the upstream.
//
// # Tests
//
// Options.Fault runs before each file system call, also before those of probes. It can return any error, or block until
// the test releases it. It is the only way to inject errors into the packages that use a volume; package volumetest has
// common faults. Ops returns all operations, so that a test can iterate over them. All waiting uses package time and
// channels, so testing/synctest works.
//
// # Use
//
//	files := volume.New(root, volume.Options{Logger: logger, Registerer: registry})
//	defer files.Close()
//	go files.Monitor(ctx) // the process that owns the volume; a program that only reads it does not call Monitor
//	f, err := files.Create(dir, "prefix-")
package volume
