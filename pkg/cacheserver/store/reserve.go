// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"os"
	"syscall"
)

// keepSize is FALLOC_FL_KEEP_SIZE of fallocate(2).
const keepSize = 1

// allocate allocates space for a file without a change of its size. It returns an error only if the space is not
// available (ENOSPC, EDQUOT) or the volume fails (EIO): other errors mean that the file system cannot reserve space.
func allocate(f File, size int64) error {
	conn, ok := f.(syscall.Conn)
	if !ok || size <= 0 {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var allocateErr error
	err = raw.Control(func(fd uintptr) {
		for {
			allocateErr = syscall.Fallocate(int(fd), keepSize, 0, size)
			if !errors.Is(allocateErr, syscall.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if IsFull(allocateErr) || errors.Is(allocateErr, syscall.EIO) {
		return os.NewSyscallError("fallocate", allocateErr)
	}
	return nil
}
