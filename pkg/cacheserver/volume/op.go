// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"io/fs"
	"slices"
	"syscall"
)

// ErrHung is wrapped by the error of each call that did not end within its deadline, or that was rejected because the
// volume is hung.
var ErrHung = errors.New("the volume does not respond")

// Op is a kind of file system call.
type Op string

// Operations. The comments name the methods that execute them.
const (
	OpMkdir    Op = "mkdir"     // FS.Mkdir, FS.MkdirAll
	OpChmod    Op = "chmod"     // FS.Chmod, FS.Chtimes
	OpOpen     Op = "open"      // FS.Open, FS.OpenFile, FS.ReadFile
	OpCreate   Op = "create"    // FS.Create
	OpStat     Op = "stat"      // FS.Stat, FS.ReadDir, FS.MkdirAll, File.Stat, File.Seek from the end
	OpReadDir  Op = "readdir"   // FS.ReadDir, FS.RemoveAll
	OpRead     Op = "read"      // File.Read, File.ReadAt, FS.ReadFile, sendfile
	OpWrite    Op = "write"     // File.Write, File.WriteAt
	OpTruncate Op = "truncate"  // File.Trim
	OpAllocate Op = "fallocate" // File.Allocate, File.Trim
	OpLock     Op = "flock"     // File.Lock
	OpSync     Op = "fsync"     // File.Sync
	OpSyncDir  Op = "fsyncdir"  // FS.SyncDir
	OpRename   Op = "rename"    // FS.Rename
	OpRemove   Op = "unlink"    // FS.Remove, FS.RemoveAll
	OpStatfs   Op = "statfs"    // FS.Statfs
	OpClose    Op = "close"     // File.Close
)

// Ops returns all operations.
func Ops() []Op {
	return []Op{
		OpMkdir, OpChmod, OpOpen, OpCreate, OpStat, OpReadDir, OpRead, OpWrite, OpTruncate, OpAllocate, OpLock, OpSync, OpSyncDir,
		OpRename, OpRemove, OpStatfs, OpClose,
	}
}

// hung returns the error of a call that has no result.
func hung(op Op, path string) error { return &fs.PathError{Op: string(op), Path: path, Err: ErrHung} }

// errnos of a volume that fails; all other errors concern one path only, such as ENOENT. Sources: man 2 write, man 2
// fsync; EUCLEAN (EFSCORRUPTED) and EBADMSG (EFSBADCRC) are returned by ext4 and XFS for corrupt metadata; ESTALE, ETIMEDOUT
// and EREMOTEIO by NFS; ENXIO and ENODEV for a removed device; ESHUTDOWN for a file system that was shut down.
var errnos = map[State][]syscall.Errno{
	Full:     {syscall.ENOSPC, syscall.EDQUOT},
	ReadOnly: {syscall.EROFS},
	Failed: {
		syscall.EIO, syscall.ESTALE, syscall.EUCLEAN, syscall.EBADMSG, syscall.ENXIO, syscall.ENODEV, syscall.ESHUTDOWN,
		syscall.ETIMEDOUT, syscall.EREMOTEIO, syscall.ENOTCONN,
	},
}

// ofConnections are those of errnos that a connection returns, too: man 7 tcp, man 2 send.
var ofConnections = []syscall.Errno{syscall.ETIMEDOUT, syscall.ENOTCONN}

// classify returns the state of the volume that the error of a call indicates, OK if the error concerns one path only.
func classify(err error) State {
	if errors.Is(err, ErrHung) {
		return Hung
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return OK
	}
	for state, list := range errnos {
		if slices.Contains(list, errno) {
			return state
		}
	}
	return OK
}

// IsFull reports whether err means that the volume, its inodes or a quota is exhausted.
func IsFull(err error) bool { return classify(err) == Full }

// IsFailure reports whether err means that the volume failed, instead of a problem with one path such as a missing file.
func IsFailure(err error) bool { return classify(err) != OK }

// ofCorruptFiles are those of errnos that reads of a corrupt file return, on a volume that can read other files.
var ofCorruptFiles = []syscall.Errno{syscall.EIO, syscall.EUCLEAN, syscall.EBADMSG}

// MayBeCorrupt reports whether err, the error of a read, can mean that the file is corrupt. A failure of the whole volume has the
// same errors, so only a second read shows which one it was.
func MayBeCorrupt(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains(ofCorruptFiles, errno)
}

// IsReadFailure reports whether err, which ended the transmission of a File to a client, means that the volume could not read
// the file. It returns false if the volume does not respond, because a later read can be successful, and if err can also be
// the error of the connection: sendfile(2) does not report which one failed.
func IsReadFailure(err error) bool {
	if classify(err) != Failed {
		return false
	}
	if _, ofCall := errors.AsType[*fs.PathError](err); ofCall {
		return true // of this package, so it concerns the file
	}
	errno, _ := errors.AsType[syscall.Errno](err)
	return !slices.Contains(ofConnections, errno)
}
