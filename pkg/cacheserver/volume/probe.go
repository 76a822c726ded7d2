// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probeDir is the directory of the cache server's own files, relative to the root.
	probeDir = "registry-cache"
	// probeName is the file that each probe reads and writes. Temporary files of probes start with this name and a dash.
	probeName = "probe"
	// probeWriteOffset is far from the first page of the file, so that writing does not modify the page that is read.
	probeWriteOffset = 1 << 20
	probePage        = 4 << 10
	// probeFileSize is the number of bytes of a temporary file. A small one could fit into metadata of a full file system.
	probeFileSize = 64 << 10
	// leftoverAge is the age at which a temporary file does not belong to a probe in progress, of this or of another process.
	leftoverAge = time.Minute
)

// errCannotWrite is wrapped by the errors of a probe that could not write, for another reason than a failure of the volume:
// wrong permissions, or an unexpected file in place of the directory.
var errCannotWrite = errors.New("the cache cannot write")

// probeResults are the operations that a probe has executed, with their errors.
type probeResults map[Op]error

// note records the result of one call. The first error of an operation remains.
func (r probeResults) note(op Op, err error) {
	if r[op] == nil {
		r[op] = err
	}
}

// noteWrite is note for calls that change the volume.
func (r probeResults) noteWrite(op Op, err error) {
	if err != nil && !IsFailure(err) {
		err = fmt.Errorf("%w: %w", errCannotWrite, err)
	}
	r.note(op, err)
}

// changing are the operations that only a probe with temporary files executes.
var changing = []Op{OpMkdir, OpChmod, OpCreate, OpWrite, OpTruncate, OpAllocate, OpLock, OpSync, OpSyncDir, OpRename, OpRemove, OpClose}

// prober executes the calls of probes, without deadlines.
type prober struct {
	root  string
	calls injector
}

func newProber(f *FS) prober { return prober{root: f.root, calls: f.calls} }

// probe executes the calls of one probe. It always reads one page from the device and modifies one page in memory: the
// first call blocks on an unreachable device, the second on a frozen file system. It executes the suspect operations, too.
// It does not sync unless that is suspect, because the duration of fsync depends on the load.
func (p prober) probe(suspects map[Op]bool) probeResults {
	r := probeResults{}
	_, err := p.calls.stat(p.root)
	r.note(OpStat, err)
	dir := filepath.Join(p.root, probeDir)
	entries, err := p.calls.readDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = p.calls.mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
			err = nil // the store has created it concurrently; if it is not a directory, opening the file fails
		}
		r.noteWrite(OpMkdir, err)
	} else {
		// Another error than one of the volume means that the directory is a file or belongs to another user.
		r.noteWrite(OpReadDir, err)
	}
	if suspects[OpStatfs] {
		_, err := p.calls.statfs(p.root)
		r.note(OpStatfs, err)
	}
	p.pages(filepath.Join(dir, probeName), r)
	for _, op := range changing {
		if suspects[op] {
			p.removeLeftovers(dir, entries)
			p.changes(dir, suspects, r)
			break
		}
	}
	return r
}

// pages reads the first page of the file from the device, and writes another page.
func (p prober) pages(path string, r probeResults) {
	file, err := p.calls.open(path, os.O_RDWR|os.O_CREATE, 0o644)
	writable := err == nil
	if !writable {
		r.noteWrite(OpOpen, err)
		if file, err = p.calls.open(path, os.O_RDONLY, 0); err != nil {
			return // the first error contains the reason
		}
	} else {
		r.note(OpOpen, nil)
	}
	defer func() { r.note(OpClose, p.calls.close(file)) }()
	// The kernel must not read the page that is written, and has to forget the page that is read.
	for _, advice := range []int{unix.FADV_RANDOM, unix.FADV_DONTNEED} {
		advise(file, advice)
	}
	page := make([]byte, probePage)
	if err = p.calls.check(OpRead, path); err == nil {
		var n int
		if n, err = file.ReadAt(page, 0); n == 0 && writable {
			_, err = p.calls.write(file, page, 0, never) // a new file
			r.noteWrite(OpWrite, err)
			err = nil
		}
	}
	r.note(OpRead, err)
	if writable {
		_, err := p.calls.write(file, []byte(time.Now().UTC().Format(time.RFC3339)), probeWriteOffset, never)
		r.noteWrite(OpWrite, err)
	}
}

// never: no caller of a probe stops waiting.
func never() bool { return false }

// advise is posix_fadvise for the first page. It is an optimization; file systems without support ignore it.
func advise(file *os.File, advice int) {
	if conn, err := file.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), 0, probePage, advice) })
	}
}

// changes executes all operations that change the volume, on a temporary file and a temporary directory.
func (p prober) changes(dir string, suspects map[Op]bool, r probeResults) {
	file, err := p.calls.create(dir, probeName+"-")
	r.noteWrite(OpCreate, err)
	if err != nil {
		return
	}
	path := file.Name()
	_, err = p.calls.write(file, make([]byte, probeFileSize), -1, never)
	r.noteWrite(OpWrite, err)
	r.noteWrite(OpTruncate, p.calls.truncate(file, probePage))
	err = p.calls.allocate(file, reserveSpace, 0, probeFileSize)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	r.noteWrite(OpAllocate, err)
	if suspects[OpLock] {
		if err = p.calls.lock(file); !IsFailure(err) {
			err = nil // a file system without locks
		}
		r.noteWrite(OpLock, err)
	}
	if suspects[OpSync] {
		r.noteWrite(OpSync, p.calls.sync(file))
	}
	r.noteWrite(OpClose, p.calls.close(file))
	r.noteWrite(OpChmod, p.calls.chmod(path, 0o644))
	err = p.calls.rename(path, path+".renamed")
	r.noteWrite(OpRename, err)
	if err == nil {
		path += ".renamed"
	}
	r.noteWrite(OpRemove, p.calls.remove(path))
	path = filepath.Join(dir, fmt.Sprintf("%s-%d", probeName, time.Now().UnixNano()))
	err = p.calls.mkdir(path, 0o755)
	r.noteWrite(OpMkdir, err)
	if err == nil {
		r.noteWrite(OpRemove, p.calls.remove(path))
	}
	if suspects[OpSyncDir] {
		r.noteWrite(OpSyncDir, p.calls.syncDir(dir))
	}
}

// removeLeftovers removes temporary files of probes that have not ended. An error is not reported: the next probe repeats
// the removal.
func (p prober) removeLeftovers(dir string, entries []fs.DirEntry) {
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), probeName+"-") {
			continue
		}
		if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > leftoverAge {
			_ = p.calls.remove(filepath.Join(dir, entry.Name()))
		}
	}
}
