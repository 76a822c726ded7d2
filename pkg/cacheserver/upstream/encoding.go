// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxCodings is the maximum number of codings of one response. One is usual.
	maxCodings = 4
	// maxZstdWindow is the maximum memory for the window of a zstd decoder, in bytes: the limit of the content coding
	// (RFC 9659, section 3).
	maxZstdWindow = 8 << 20
	// maxExpansion is the maximum number of decoded bytes for each encoded byte. It is the limit of deflate
	// (https://zlib.net/zlib_tech.html). zstd can encode 128 KiB in a few bytes, so a small response could fill a volume.
	maxExpansion = 1032
	// expansionSlack is the number of decoded bytes that are always allowed: one block of zstd (RFC 8878, section
	// 3.1.1.2.3).
	expansionSlack = 128 << 10
)

// decodeContent replaces the body of a response with content codings by the decoded content. It supports the codings
// that containerd decodes (gzip, zstd and deflate), with x-gzip as another name of gzip (RFC 9110, section 8.4.1.3). The
// length, the ETag and the ranges of the header belong to the encoded content, so they are removed: ContentLength is
// -1, and Uncompressed is true. An error
// means that the content cannot be used: the coding is unknown, the response is a range of the encoded content, or the
// beginning of the content is not valid for its coding.
func decodeContent(resp *http.Response) error {
	codings, err := contentCodings(resp.Header)
	if err != nil || len(codings) == 0 {
		return err
	}
	if resp.StatusCode == http.StatusPartialContent {
		return fmt.Errorf("the response is a range of content with the coding %q", strings.Join(codings, ", "))
	}
	resp.ContentLength, resp.Uncompressed = -1, true
	for _, name := range []string{"Content-Length", "Content-Encoding", "ETag", "Accept-Ranges"} {
		resp.Header.Del(name)
	}
	if resp.Request.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	limit := &expansion{Reader: resp.Body}
	var content io.Reader = limit
	// The last coding was applied last (RFC 9110, section 8.4).
	for i := len(codings) - 1; i >= 0; i-- {
		if content, err = decoder(codings[i], content); err != nil {
			return err
		}
	}
	resp.Body = &decodedBody{content: content, encoded: limit, body: resp.Body}
	return nil
}

// contentCodings returns the codings of the header Content-Encoding in lower case and in the order in which they were
// applied, without "identity". It returns an error if one of them is not supported.
func contentCodings(header http.Header) ([]string, error) {
	var codings []string
	for coding := range strings.SplitSeq(strings.Join(header.Values("Content-Encoding"), ","), ",") {
		coding = strings.ToLower(strings.TrimSpace(coding))
		switch coding {
		case "", "identity":
			continue
		case "x-gzip":
			coding = "gzip"
		case "gzip", "zstd", "deflate":
		default:
			return nil, fmt.Errorf("the response has the content coding %.32q, which is not supported", coding)
		}
		if codings = append(codings, coding); len(codings) > maxCodings {
			return nil, fmt.Errorf("the response has more than %d content codings", maxCodings)
		}
	}
	return codings, nil
}

// decoder returns a reader of the content that r has with the coding.
func decoder(coding string, r io.Reader) (io.Reader, error) {
	switch coding {
	case "gzip":
		return gzip.NewReader(r)
	case "zstd":
		// With a concurrency of 1, the decoder has no goroutines, and needs no Close.
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
	}
	return inflate(r)
}

// inflate decodes the coding deflate: the zlib format (RFC 9110, section 8.4.1.2), or deflate without the zlib header,
// which some servers send and which is the only format that containerd decodes.
func inflate(r io.Reader) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	header, err := buffered.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	// RFC 1950, section 2.2: method 8, and a multiple of 31. Without the zlib header, these bits would be a stored block
	// with padding bits that are not zero (RFC 1951, section 3.2.4), which encoders do not write.
	if len(header) == 2 && header[0]&0x0f == 8 && (int(header[0])<<8|int(header[1]))%31 == 0 {
		return zlib.NewReader(buffered)
	}
	return flate.NewReader(buffered), nil
}

// expansion counts encoded bytes.
type expansion struct {
	io.Reader
	count int64
}

func (e *expansion) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	e.count += int64(n)
	return n, err
}

// decodedBody is the body of a response, decoded.
type decodedBody struct {
	content io.Reader
	encoded *expansion
	body    io.Closer
	count   int64 // of decoded bytes
}

func (b *decodedBody) Read(p []byte) (int, error) {
	n, err := b.content.Read(p)
	b.count += int64(n)
	if b.count > b.encoded.count*maxExpansion+expansionSlack {
		return 0, fmt.Errorf("the response encodes more than %d bytes of content in %d bytes", b.count, b.encoded.count)
	}
	return n, err
}

func (b *decodedBody) Close() error { return b.body.Close() }
