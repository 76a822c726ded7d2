// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNotRegular is wrapped by the error of opening a FIFO, a socket or a device. The store contains regular files and
// directories only.
var ErrNotRegular = errors.New("it is neither a regular file nor a directory")

// ErrLocked is wrapped by the error of File.Lock if another process has locked the file.
var ErrLocked = errors.New("another process uses the file")

// injector has the file system calls without a deadline, each after the fault of a test. The zero value injects nothing.
// The methods run in workers and in probes only.
type injector func(op Op, path string) error

// check returns the injected error of a call, in the form in which package os returns it.
func (in injector) check(op Op, path string) error {
	if in == nil {
		return nil
	}
	if err := in(op, path); err != nil {
		return &fs.PathError{Op: string(op), Path: path, Err: err}
	}
	return nil
}

func (in injector) mkdir(path string, perm fs.FileMode) error {
	if err := in.check(OpMkdir, path); err != nil {
		return err
	}
	return os.Mkdir(path, perm)
}

func (in injector) chmod(path string, perm fs.FileMode) error {
	if err := in.check(OpChmod, path); err != nil {
		return err
	}
	return os.Chmod(path, perm)
}

// open opens a regular file or a directory. O_NONBLOCK has no effect on them, but without it open(2) of a FIFO blocks
// until another process opens its other end.
func (in injector) open(path string, flag int, perm fs.FileMode) (*os.File, error) {
	if err := in.check(OpOpen, path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, perm)
	if errors.Is(err, syscall.ENXIO) { // a FIFO that is opened for writing, or a socket
		return nil, &fs.PathError{Op: string(OpOpen), Path: path, Err: ErrNotRegular}
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = &fs.PathError{Op: string(OpOpen), Path: path, Err: ErrNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (in injector) create(dir, prefix string) (*os.File, error) {
	if err := in.check(OpCreate, dir); err != nil {
		return nil, err
	}
	return os.CreateTemp(dir, prefix)
}

func (in injector) stat(path string) (fs.FileInfo, error) {
	if err := in.check(OpStat, path); err != nil {
		return nil, err
	}
	return os.Stat(path)
}

func (in injector) lstat(path string) (fs.FileInfo, error) {
	if err := in.check(OpStat, path); err != nil {
		return nil, err
	}
	return os.Lstat(path)
}

func (in injector) fstat(f *os.File) (fs.FileInfo, error) {
	if err := in.check(OpStat, f.Name()); err != nil {
		return nil, err
	}
	return f.Stat()
}

func (in injector) readDir(path string) ([]fs.DirEntry, error) {
	if err := in.check(OpReadDir, path); err != nil {
		return nil, err
	}
	return os.ReadDir(path)
}

// readAll reads a file of at most limit bytes. It does not change the access time if the process is the owner or the
// superuser: for content of a stock registry, this is the time of the last use.
func (in injector) readAll(path string, limit int64) ([]byte, error) {
	f, err := in.open(path, os.O_RDONLY|syscall.O_NOATIME, 0)
	if errors.Is(err, syscall.EPERM) {
		f, err = in.open(path, os.O_RDONLY, 0)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.close(f) }() // nothing was written, so the content is complete
	if err := in.check(OpRead, path); err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, &fs.PathError{Op: string(OpRead), Path: path, Err: fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)}
	}
	return content, nil
}

// write appends b, or writes it at offset if offset is not negative. An injected error follows after half of the bytes, as
// on a full volume. It writes nothing if the caller has stopped waiting before, because b can have another content by then.
func (in injector) write(f *os.File, b []byte, offset int64, isAbandoned func() bool) (int, error) {
	injected := in.check(OpWrite, f.Name())
	if isAbandoned() {
		return 0, injected
	}
	if injected != nil {
		b = b[:len(b)/2]
	}
	var n int
	var err error
	if offset < 0 {
		n, err = f.Write(b)
	} else {
		n, err = f.WriteAt(b, offset)
	}
	if injected != nil {
		return n, injected
	}
	return n, err
}

func (in injector) truncate(f *os.File, size int64) error {
	if err := in.check(OpTruncate, f.Name()); err != nil {
		return err
	}
	return f.Truncate(size)
}

// Modes of allocate. None changes the size of the file.
const (
	reserveSpace = unix.FALLOC_FL_KEEP_SIZE
	releaseSpace = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE
)

// allocate reserves or releases space. The error wraps errors.ErrUnsupported if the file system cannot do that. Some return
// ENODEV (man 2 fallocate), which other calls return for a removed device.
func (in injector) allocate(f *os.File, mode uint32, offset, size int64) error {
	err := in.check(OpAllocate, f.Name())
	if err == nil {
		err = fallocate(f, mode, offset, size)
	}
	if errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("reserving or releasing space of %s: %w", f.Name(), errors.ErrUnsupported)
	}
	return err
}

func fallocate(f *os.File, mode uint32, offset, size int64) error {
	return control(OpAllocate, f, func(fd int) error { return unix.Fallocate(fd, mode, offset, size) })
}

func (in injector) lock(f *os.File) error {
	if err := in.check(OpLock, f.Name()); err != nil {
		return err
	}
	err := control(OpLock, f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &fs.PathError{Op: string(OpLock), Path: f.Name(), Err: ErrLocked}
	}
	return err
}

// control executes a system call with the descriptor of a file, again after each interruption by a signal.
func control(op Op, f *os.File, call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = conn.Control(func(fd uintptr) {
		for {
			if callErr = call(int(fd)); !errors.Is(callErr, syscall.EINTR) {
				return
			}
		}
	})
	if err == nil && callErr != nil {
		err = &fs.PathError{Op: string(op), Path: f.Name(), Err: callErr}
	}
	return err
}

func (in injector) sync(f *os.File) error {
	if err := in.check(OpSync, f.Name()); err != nil {
		return err
	}
	return f.Sync()
}

func (in injector) syncDir(path string) error {
	if err := in.check(OpSyncDir, path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (in injector) rename(from, to string) error {
	if err := in.check(OpRename, to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

func (in injector) remove(path string) error {
	if err := in.check(OpRemove, path); err != nil {
		return err
	}
	return os.Remove(path)
}

func (in injector) statfs(path string) (stat syscall.Statfs_t, err error) {
	if err := in.check(OpStatfs, path); err != nil {
		return stat, err
	}
	if err := syscall.Statfs(path, &stat); err != nil {
		return stat, &fs.PathError{Op: string(OpStatfs), Path: path, Err: err}
	}
	return stat, nil
}

// close releases the file also if an error is injected.
func (in injector) close(f *os.File) error {
	injected := in.check(OpClose, f.Name())
	err := f.Close()
	if injected != nil {
		return injected
	}
	return err
}
