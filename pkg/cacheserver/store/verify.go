// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// verifyChunk is the number of bytes between two calls of pause.
	verifyChunk = 1 << 20
	// maxVerified bounds the remembered verifications. An entry needs about 200 bytes.
	maxVerified = 1 << 14
)

// Verify compares an open file of content with its digest, and drops it if it is corrupt. It returns true if the content has
// the digest, and false without an error if the content was dropped or replaced. pause is called after each MiB. The caller
// keeps the file open until Verify returns, so that its inode number is not reused and Drop recognizes the file. Errors are
// those of Drop and of stat, the cause of ctx, and those of reads that prove nothing, because the volume fails.
func (c *contents) Verify(ctx context.Context, f fs.File, d digest.Digest, pause func()) (bool, error) {
	began := time.Now()
	reason, err := corruption(ctx, c.rereading(ctx, f), d, pause)
	if err != nil {
		return false, fmt.Errorf("verifying %s: %w", d, err)
	}
	if reason == "" {
		if err := c.noteIntact(d, f, began); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("verifying %s: %w", d, err)
		}
		return true, nil
	}
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("dropping %s: %s: %w", d, reason, err)
	}
	if err := c.Drop(d, info, reason); err != nil {
		return false, fmt.Errorf("%w: %w", errNotDropped, err)
	}
	return false, nil
}

// Examine verifies content after Suspect: it drops a corrupt file, and serves an intact one again. After an error, see Conclude,
// the file is not served until another download replaces it.
func (c *contents) Examine(ctx context.Context, d digest.Digest) (err error) {
	f, err := c.fs.Open(c.layout.Data(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("examining %s: %w", d, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || c.withheld.check(d, info) == nil {
		return err // or it was replaced, or examined meanwhile
	}
	_, err = c.Verify(ctx, f, d, func() {})
	return err
}

// errNotDropped is wrapped by the error of Verify about content that is corrupt and cannot be deleted.
var errNotDropped = errors.New("corrupt content cannot be deleted")

// VerifiedSince reports that a verification which began after t, in this process, has found the content to be intact. False
// proves nothing: old verifications are forgotten. The digest that a download computes does not count as a verification,
// because it does not concern the file.
func (c *contents) VerifiedSince(d digest.Digest, t time.Time) bool {
	return c.verified.last(d).After(t)
}

// corruption reads content to its end and returns the reason why it is corrupt, "" if it has the digest. A canceled ctx and
// a read that fails otherwise than with errUnreadable prove nothing: then it returns an error. pause is called after each MiB.
func corruption(ctx context.Context, content io.Reader, d digest.Digest, pause func()) (reason string, _ error) {
	verifier := d.Verifier()
	var err error
	for err == nil && ctx.Err() == nil {
		_, err = io.CopyN(verifier, content, verifyChunk)
		pause()
	}
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.Is(err, errUnreadable):
		return err.Error(), nil
	case err != io.EOF:
		return "", err
	case !verifier.Verified():
		return "its content has another digest", nil
	}
	return "", nil
}
