// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// File is an open file of a volume. It implements io.Reader, io.ReaderAt, io.Writer, io.WriterAt, io.Seeker, io.Closer and
// syscall.Conn. ReadAt, WriteAt, Stat, Sync and Close are safe for concurrent use; Read, Write and Seek share the offset
// of the file, so one goroutine at a time may use them.
type File struct {
	files *FS
	file  *os.File
	// unusable is set after an abandoned write or an unsuccessful sync.
	unusable atomic.Pointer[error]
	// unsynced is the number of bytes that were written since the last Sync.
	unsynced  atomic.Int64
	closeOnce sync.Once
	// guard is nil unless Guard was called.
	guard atomic.Pointer[guard]
}

func newFile(f *FS, file *os.File) *File { return &File{files: f, file: file} }

// Name returns the path with which the file was opened or created.
func (f *File) Name() string { return f.file.Name() }

// Read implements io.Reader. It reads at most 128 KiB.
func (f *File) Read(p []byte) (int, error) { return read(f, p, -1) }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, &fs.PathError{Op: string(OpRead), Path: f.Name(), Err: errors.New("negative offset")}
	}
	var total int
	for {
		n, err := read(f, p[total:], offset+int64(total))
		total += n
		if err != nil || total == len(p) {
			return total, err
		}
	}
}

// CopyTo writes the next n bytes of the file to w, in pieces of up to 128 KiB. It needs less processor time than Read,
// because it writes the buffer into which it has read. It writes fewer bytes without an error if the file ends before. Errors
// are those of Read and of w.
func (f *File) CopyTo(w io.Writer, n int64) (int64, error) {
	var total int64
	for total < n {
		buffer, read, readErr := readNext(f, n-total, -1)
		if read > 0 {
			written, err := w.Write((*buffer)[:read])
			f.files.buffers.put(buffer)
			total += int64(written)
			if err != nil {
				return total, err
			}
		}
		if readErr == io.EOF {
			return total, nil
		}
		if readErr != nil {
			return total, readErr
		}
	}
	return total, nil
}

func read(f *File, p []byte, offset int64) (int, error) {
	buffer, n, err := readNext(f, int64(len(p)), offset)
	if n > 0 {
		copy(p, (*buffer)[:n])
		f.files.buffers.put(buffer)
	}
	return n, err
}

// readNext reads at most limit bytes at the offset, or at the offset of the file if it is negative. It reads into a buffer
// of the package, because an abandoned read can write to its buffer later. If n is positive, the caller puts the buffer back,
// and err follows the bytes.
func readNext(f *File, limit, offset int64) (buffer *[]byte, n int, err error) {
	buffer = f.files.buffers.get(limit)
	t := f.files.workers.get()
	t.file, t.buffer, t.offset = f, (*buffer)[:min(limit, int64(len(*buffer)))], offset
	t.work = executeRead
	if err := f.files.execute(t, OpRead, f.Name(), f.files.timeout); err != nil {
		f.files.buffers.forget(buffer)
		if offset < 0 {
			f.fail(err) // the offset of the file is undefined
		}
		return nil, 0, err
	}
	n, err = t.n, t.err
	f.files.workers.put(t)
	f.files.health.observe(OpRead, err)
	if n <= 0 {
		f.files.buffers.put(buffer)
		return nil, 0, err
	}
	return buffer, n, err
}

func executeRead(t *task) {
	f := t.file
	if t.err = f.files.calls.check(OpRead, f.Name()); t.err != nil || t.isAbandoned() {
		return
	}
	if t.offset < 0 {
		t.n, t.err = f.file.Read(t.buffer)
	} else {
		t.n, t.err = f.file.ReadAt(t.buffer, t.offset)
	}
}

// Write implements io.Writer. After an error that wraps ErrHung the caller must not modify p, see the package
// documentation.
func (f *File) Write(p []byte) (int, error) { return f.write(p, -1) }

// WriteAt implements io.WriterAt. The rule for p is the one of Write. The file must not be opened with os.O_APPEND.
func (f *File) WriteAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, &fs.PathError{Op: string(OpWrite), Path: f.Name(), Err: errors.New("negative offset")}
	}
	return f.write(p, offset)
}

func (f *File) write(p []byte, offset int64) (int, error) {
	if err := f.Err(); err != nil {
		return 0, err
	}
	t := f.files.workers.get()
	t.file, t.buffer, t.offset = f, p, offset
	t.work = executeWrite
	if err := f.files.execute(t, OpWrite, f.Name(), f.files.timeout); err != nil {
		f.fail(err)
		return 0, err
	}
	n, err := t.n, t.err
	f.files.workers.put(t)
	f.unsynced.Add(int64(n))
	f.files.health.observe(OpWrite, err)
	return n, err
}

func executeWrite(t *task) {
	t.n, t.err = t.file.files.calls.write(t.file.file, t.buffer, t.offset, t.isAbandoned)
}

// Trim releases the space of all bytes outside of the spans, also of those that Allocate has reserved: it ends the file at the
// last span, and punches holes between the spans. A span has the offsets of its first byte and of the byte behind its last one;
// spans are ascending, do not overlap, and have been written. A file system without holes keeps the space between them, which
// is no error. After an error the size of the file is undefined.
func (f *File) Trim(spans [][2]int64) error {
	var end int64
	for _, span := range spans {
		offset, size := end, span[0]-end
		end = span[1]
		if size == 0 {
			continue
		}
		err := f.change(OpAllocate, func() error { return f.files.calls.allocate(f.file, releaseSpace, offset, size) })
		if IsFailure(err) {
			return err
		}
	}
	return f.change(OpTruncate, func() error { return f.files.calls.truncate(f.file, end) })
}

// Allocate reserves space for size bytes from offset, without changing the size of the file: fallocate(2) with
// FALLOC_FL_KEEP_SIZE. File systems without support return an error that wraps errors.ErrUnsupported.
func (f *File) Allocate(offset, size int64) error {
	return run(f.files, OpAllocate, f.Name(), func() error { return f.files.calls.allocate(f.file, reserveSpace, offset, size) })
}

// Lock locks the file for this process until it is closed, without waiting: flock(2). The error wraps ErrLocked if another
// process has locked it. On network file systems the server decides.
func (f *File) Lock() error {
	return run(f.files, OpLock, f.Name(), func() error { return f.files.calls.lock(f.file) })
}

// Sync is os.File.Sync. After an error the file is unusable: the kernel may have dropped unwritten data and returns
// success for a second fsync (man 2 fsync, section NOTES).
func (f *File) Sync() error {
	if err := f.Err(); err != nil {
		return err
	}
	unsynced := f.unsynced.Load()
	t := f.files.workers.get()
	t.work = func(t *task) { t.err = f.files.calls.sync(f.file) }
	limit := f.files.syncTimeout + time.Duration(unsynced/minSyncRate)*time.Second
	if err := f.files.execute(t, OpSync, f.Name(), limit); err != nil {
		f.fail(err)
		return err
	}
	err := t.err
	f.files.workers.put(t)
	f.files.health.observe(OpSync, err)
	if err != nil {
		f.fail(err)
		return err
	}
	f.unsynced.Add(-unsynced)
	return nil
}

// change executes a call that modifies the file.
func (f *File) change(op Op, work func() error) error {
	if err := f.Err(); err != nil {
		return err
	}
	err := run(f.files, op, f.Name(), work)
	if errors.Is(err, ErrHung) {
		f.fail(err)
	}
	return err
}

// fail makes the file unusable.
func (f *File) fail(err error) { f.unusable.CompareAndSwap(nil, &err) }

// Err returns the error that has made the file unusable, or nil. The content of an unusable file is undefined, also later: a
// write that is blocked in the kernel can still take effect. Such a file must not be kept.
func (f *File) Err() error {
	if err := f.unusable.Load(); err != nil {
		return *err
	}
	return nil
}

// Stat is os.File.Stat.
func (f *File) Stat() (fs.FileInfo, error) {
	return do(f.files, OpStat, f.Name(), func() (fs.FileInfo, error) { return f.files.calls.fstat(f.file) }, nil)
}

// Seek implements io.Seeker.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	if err := f.Err(); err != nil {
		return 0, err
	}
	if whence == io.SeekEnd {
		// On network file systems the kernel requests the size from the server.
		info, err := f.Stat()
		if err != nil {
			return 0, err
		}
		offset, whence = offset+info.Size(), io.SeekStart
	}
	return f.file.Seek(offset, whence)
}

// Close closes the file. It returns an error only if bytes were written since the last Sync, because the kernel may have lost
// them, and an error that wraps os.ErrClosed for a second call. If the volume is hung, it returns nil immediately, and the
// file is closed as soon as the kernel permits it.
func (f *File) Close() error {
	err := error(&fs.PathError{Op: string(OpClose), Path: f.Name(), Err: os.ErrClosed})
	f.closeOnce.Do(func() { err = f.close() })
	return err
}

func (f *File) close() error {
	err := run(f.files, OpClose, f.Name(), func() error { return f.files.calls.close(f.file) })
	if errors.Is(err, ErrHung) || errors.Is(err, errClosed) {
		// Closing twice is harmless. The number of these goroutines is bounded by the number of open files.
		go func() { _ = f.file.Close() }()
		return nil
	}
	if f.unsynced.Load() == 0 {
		return nil // health has observed the error
	}
	return err
}
