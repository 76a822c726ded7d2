// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

const (
	// roomTimeout is how long a client may wait for others' content to go, which is better than a pull that passes the
	// volume by, and worse than one that began at once.
	roomTimeout = 2 * time.Second
	// roomInterval is how often the volume is asked meanwhile: XFS frees space in the background.
	roomInterval = 20 * time.Millisecond
	// keepSize is FALLOC_FL_KEEP_SIZE of fallocate(2).
	keepSize = 1
)

// demand asks Maintain for room.
type demand struct {
	bytes int64
	done  chan struct{} // closed when what may go for it has gone
}

// promises are the demands that an eviction has not met yet, in the order in which they came.
type promises []promise

type promise struct {
	demand
	due int64 // met when this many bytes were freed
}

// add takes on a demand when some bytes were freed, and returns how many have to be for it and those before.
func (p *promises) add(d demand, freed int64) (due int64) {
	due = freed + d.bytes
	if n := len(*p); n > 0 {
		due = (*p)[n-1].due + d.bytes
	}
	*p = append(*p, promise{d, due})
	return due
}

// keep tells those who are waiting for no more than the freed bytes.
func (p *promises) keep(freed int64) {
	for len(*p) > 0 && (*p)[0].due <= freed {
		close((*p)[0].done)
		*p = (*p)[1:]
	}
}

// Reserve takes the space for a blob of this size, in bytes, before it is written, so that a volume that is too full is
// found out when nothing has been sent to any client yet. If there is none, it lets what was not used for longest go, and
// waits for it for some seconds at most. A volume that cannot reserve space is no error.
func (p *Partial) Reserve(ctx context.Context, size int64) error {
	err := allocate(p.file, size)
	if isFull(err) && p.store.canMakeRoom(size) {
		err = p.store.makeRoom(ctx, size, func() error { return allocate(p.file, size) })
	}
	if err != nil {
		p.store.noticeFull(err)
		return fmt.Errorf("reserving %d bytes for blob %s: %w", size, p.digest, err)
	}
	return nil
}

// canMakeRoom says whether deleting something could help.
func (s *Store) canMakeRoom(size int64) bool {
	v, err := s.volume()
	return err == nil && s.learned.Load() && s.policy.Fits(v, size)
}

// makeRoom lets Maintain free the bytes, and returns what try does when it succeeds, or at last.
func (s *Store) makeRoom(ctx context.Context, bytes int64, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, roomTimeout)
	defer cancel()
	d := demand{bytes: bytes, done: make(chan struct{})}
	select {
	case s.demands <- d:
	case <-ctx.Done():
		return try()
	}
	select {
	case <-d.done:
	case <-ctx.Done():
	}
	tick := time.NewTicker(roomInterval)
	defer tick.Stop()
	for {
		err := try()
		if !isFull(err) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// allocate gives the file space without changing its size, if the volume can do that.
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
	switch {
	case err != nil:
		return err
	case errors.Is(allocateErr, syscall.EOPNOTSUPP), errors.Is(allocateErr, syscall.ENOSYS):
		return nil
	case allocateErr != nil:
		return os.NewSyscallError("fallocate", allocateErr)
	}
	return nil
}

// isFull says that the volume has no room left for this server.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
