// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	defaultTimeout = 5 * time.Second
	// defaultSyncTimeout is longer than defaultTimeout: fsync on a slow disk that does respond writes the data of other
	// files, too. No response to a client waits for it, and a probe detects a volume that does not respond much earlier.
	defaultSyncTimeout = 30 * time.Second
	// minSyncRate is the lowest rate of a usable volume in bytes/s. An fsync has additional time for unwritten data of its
	// file at this rate.
	minSyncRate = 4 << 20
	// defaultProbeInterval and defaultProbeTimeout together are less than 5 s, the time within which a hung volume must
	// be detected.
	defaultProbeInterval = 2 * time.Second
	defaultProbeTimeout  = 2500 * time.Millisecond
	// defaultMaxCalls is more than a volume executes concurrently. Each blocked call occupies a thread.
	defaultMaxCalls = 128
)

// ErrTooLarge is wrapped by the errors about files that are larger than the limit of ReadFile.
var ErrTooLarge = errors.New("the file is too large")

// Options are the optional parts of an FS. The zero value is useful.
type Options struct {
	// Timeout is the deadline of each call except Sync and SyncDir. Default 5 s.
	Timeout time.Duration
	// SyncTimeout is the deadline of Sync and SyncDir. Sync has one more second for each 4 MiB that were written to the
	// file since the previous Sync. Default 30 s.
	SyncTimeout time.Duration
	// ProbeInterval is the time between two probes of Monitor. Default 2 s.
	ProbeInterval time.Duration
	// ProbeTimeout is the time after which a probe without a result marks the volume as hung. Default 2.5 s.
	ProbeTimeout time.Duration
	// MaxCalls bounds the concurrent calls, blocked ones included. A further call waits within its deadline. Default 128.
	MaxCalls int
	// Fault runs before each file system call of op on path, also before those of probes. Path is absolute; it is the
	// directory for OpCreate and the new path for OpRename. The call fails with the returned error; it blocks as long as
	// Fault blocks. A write that fails has written half of its bytes. Fault must be safe for concurrent use. Only for
	// tests. Default: no faults.
	Fault func(op Op, path string) error
	// Logger gets each change of the health. Default: discarded.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: none.
	Registerer prometheus.Registerer
}

// FS has the file system calls on one volume, see the package documentation. All paths are absolute. All methods return
// the errors of package os, and errors that wrap ErrHung. An FS is safe for concurrent use.
type FS struct {
	root        string
	timeout     time.Duration
	syncTimeout time.Duration
	calls       injector
	workers     *workers
	health      *health
	buffers     *buffers
}

// New returns an FS for the volume that is mounted at root. It does not access the volume. The caller calls Close.
func New(root string, o Options) *FS {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.SyncTimeout == 0 {
		o.SyncTimeout = defaultSyncTimeout
	}
	if o.ProbeInterval == 0 {
		o.ProbeInterval = defaultProbeInterval
	}
	if o.ProbeTimeout == 0 {
		o.ProbeTimeout = defaultProbeTimeout
	}
	if o.MaxCalls == 0 {
		o.MaxCalls = defaultMaxCalls
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f := &FS{root: root, timeout: o.Timeout, syncTimeout: o.SyncTimeout, calls: o.Fault, buffers: newBuffers()}
	f.health = newHealth(o)
	f.workers = newWorkers(o.MaxCalls, f.health.callReturned)
	f.health.blocked = f.workers.blocked.Load
	return f
}

// errClosed is wrapped by the errors of calls after FS.Close.
var errClosed = errors.New("the file system was closed by the server")

// Close ends the workers. Later calls fail, except File.Close. Calls that are blocked in the kernel are not
// waited for. Close may be called more than once.
func (f *FS) Close() { f.workers.close(f.timeout) }

// Health returns the state of the volume. It does not access the volume.
func (f *FS) Health() Health { return f.health.get() }

// Open opens a regular file or a directory for reading. The caller closes it. It returns an error that wraps
// ErrNotRegular for any other file, without blocking.
func (f *FS) Open(path string) (*File, error) { return f.OpenFile(path, os.O_RDONLY, 0) }

// OpenFile is Open with the flags of os.OpenFile. The file must exist or flag must contain os.O_CREATE.
func (f *FS) OpenFile(path string, flag int, perm fs.FileMode) (*File, error) {
	file, err := do(f, OpOpen, path, func() (*os.File, error) { return f.calls.open(path, flag, perm) }, closeLate)
	if err != nil {
		return nil, err
	}
	return newFile(f, file), nil
}

// Create creates a new file in dir with a name that starts with prefix and with mode 0600, like os.CreateTemp. The caller closes
// and renames or removes it.
func (f *FS) Create(dir, prefix string) (*File, error) {
	late := func(file *os.File) {
		closeLate(file)
		_ = os.Remove(file.Name()) // a remaining temporary file is removed at the next start
	}
	file, err := do(f, OpCreate, dir, func() (*os.File, error) { return f.calls.create(dir, prefix) }, late)
	if err != nil {
		return nil, err
	}
	return newFile(f, file), nil
}

// closeLate closes the file of an abandoned call.
func closeLate(file *os.File) { _ = file.Close() } // nothing was written to it

// ReadFile returns the content of a file of at most limit bytes. It returns an error that wraps ErrTooLarge for a larger
// one.
func (f *FS) ReadFile(path string, limit int64) ([]byte, error) {
	return do(f, OpRead, path, func() ([]byte, error) { return f.calls.readAll(path, limit) }, nil)
}

// Stat is os.Stat.
func (f *FS) Stat(path string) (fs.FileInfo, error) {
	return do(f, OpStat, path, func() (fs.FileInfo, error) { return f.calls.stat(path) }, nil)
}

// ReadDir is os.ReadDir. The method Info of an entry has a deadline, too.
func (f *FS) ReadDir(path string) ([]fs.DirEntry, error) {
	entries, err := do(f, OpReadDir, path, func() ([]fs.DirEntry, error) { return f.calls.readDir(path) }, nil)
	for i := range entries {
		entries[i] = dirEntry{entries[i], f, path}
	}
	return entries, err
}

// dirEntry is an entry of the directory dir.
type dirEntry struct {
	fs.DirEntry
	files *FS
	dir   string
}

// Info implements fs.DirEntry.
func (e dirEntry) Info() (fs.FileInfo, error) {
	path := filepath.Join(e.dir, e.Name())
	return do(e.files, OpStat, path, func() (fs.FileInfo, error) { return e.files.calls.lstat(path) }, nil)
}

// Mkdir is os.Mkdir.
func (f *FS) Mkdir(path string, perm fs.FileMode) error {
	return run(f, OpMkdir, path, func() error { return f.calls.mkdir(path, perm) })
}

// MkdirAll is os.MkdirAll.
func (f *FS) MkdirAll(path string, perm fs.FileMode) error {
	if info, err := f.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	err := f.Mkdir(path, perm)
	if parent := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && parent != path {
		if err := f.MkdirAll(parent, perm); err != nil {
			return err
		}
		err = f.Mkdir(path, perm)
	}
	if errors.Is(err, fs.ErrExist) {
		// Another goroutine has created it, or it is not a directory.
		info, statErr := f.Stat(path)
		if statErr != nil {
			return statErr
		}
		if info.IsDir() {
			return nil
		}
		return &fs.PathError{Op: string(OpMkdir), Path: path, Err: syscall.ENOTDIR}
	}
	return err
}

// Chmod is os.Chmod.
func (f *FS) Chmod(path string, perm fs.FileMode) error {
	return run(f, OpChmod, path, func() error { return f.calls.chmod(path, perm) })
}

// Chtimes is os.Chtimes.
func (f *FS) Chtimes(path string, accessed, modified time.Time) error {
	return run(f, OpChmod, path, func() error {
		if err := f.calls.check(OpChmod, path); err != nil {
			return err
		}
		return os.Chtimes(path, accessed, modified)
	})
}

// SyncDir is fsync of the directory: created, renamed and removed entries survive a power failure.
func (f *FS) SyncDir(path string) error {
	return run(f, OpSyncDir, path, func() error { return f.calls.syncDir(path) })
}

// Rename is os.Rename. An abandoned call can still rename the file later.
func (f *FS) Rename(from, to string) error {
	return run(f, OpRename, to, func() error { return f.calls.rename(from, to) })
}

// Remove is os.Remove. An abandoned call can still remove the file later.
func (f *FS) Remove(path string) error {
	return run(f, OpRemove, path, func() error { return f.calls.remove(path) })
}

// RemoveAll is os.RemoveAll. Each removal and each read of a directory has its own deadline. It does not follow symbolic
// links.
func (f *FS) RemoveAll(path string) error {
	err := f.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) { // POSIX permits both for rmdir
		return err
	}
	entries, err := f.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, entry := range entries {
		err := f.RemoveAll(filepath.Join(path, entry.Name()))
		errs = append(errs, err)
		if errors.Is(err, ErrHung) {
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := f.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Statfs is statfs(2).
func (f *FS) Statfs(path string) (syscall.Statfs_t, error) {
	return do(f, OpStatfs, path, func() (syscall.Statfs_t, error) { return f.calls.statfs(path) }, nil)
}

// ReportRead records the error of a read that was no call of this package: an error of sendfile, which package net returns.
// It ignores errors without IsReadFailure, and errors of calls of this package, which are recorded already.
func (f *FS) ReportRead(err error) {
	if _, recorded := errors.AsType[*fs.PathError](err); !recorded && IsReadFailure(err) {
		f.health.observe(OpRead, err)
	}
}
