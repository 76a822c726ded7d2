// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// volume is the content of a cache in the layout of the stock registry, without other files of a server.
type volume struct {
	root  string
	image image // a small image that is stored
}

// contentDir is the folder with all content of a volume.
const contentDir = "docker"

// blobsOfRepository is the number of blobs of each repository of a generated volume.
const blobsOfRepository = 50

// fullVolume returns a volume of n blobs that were used one day ago. It is created once, because this takes longer than
// its use.
func (b *bench) fullVolume(ctx context.Context, n int) (volume, error) {
	if b.full != nil {
		return *b.full, nil
	}
	v, err := b.makeVolume(ctx, n, time.Now().Add(-24*time.Hour))
	if err == nil {
		b.full = &v
	}
	return v, err
}

// makeVolume writes n small blobs with the given last use, and one image that was used now.
func (b *bench) makeVolume(ctx context.Context, n int, lastUse time.Time) (volume, error) {
	v := volume{root: filepath.Join(b.dir, "volume")}
	b.full = nil
	if err := os.RemoveAll(v.root); err != nil {
		return v, err
	}
	for k := range n {
		if err := context.Cause(ctx); err != nil {
			return v, err
		}
		if _, err := v.put(fillerRepository(k), "_layers", filler(k), lastUse); err != nil {
			return v, err
		}
	}
	v.image = image{repository: "library/stored", tag: "v1"}
	config, err := v.put(v.image.repository, "_layers", []byte("{}"), time.Now())
	if err != nil {
		return v, err
	}
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},"layers":[]}`, config)
	stored, err := v.put(v.image.repository, "_manifests/revisions", []byte(manifest), time.Now())
	v.image.digest = stored.String()
	return v, err
}

// filler returns the content of the k-th blob of a generated volume, fillerDigest its digest, and fillerRepository its
// repository.
func filler(k int) []byte { return fmt.Appendf(nil, "blob %d", k) }

func fillerDigest(k int) digest.Digest { return digest.FromBytes(filler(k)) }

func fillerRepository(k int) string { return fmt.Sprintf("library/filler-%d", k/blobsOfRepository) }

// put writes content and its link in a repository.
func (v volume) put(repository, kind string, content []byte, lastUse time.Time) (digest.Digest, error) {
	d := digest.FromBytes(content)
	for path, content := range map[string][]byte{
		v.data(d):                   content,
		v.link(repository, kind, d): []byte(d),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return "", err
		}
		if err := os.Chtimes(path, lastUse, lastUse); err != nil {
			return "", err
		}
	}
	return d, nil
}

// expiredVolume returns a volume of n blobs that were last used at lastUse. It is the full volume, if that exists,
// because deleting it and creating another one would take longer. It is for one caller, which may change it.
func (b *bench) expiredVolume(ctx context.Context, n int, lastUse time.Time) (volume, error) {
	if b.full == nil {
		return b.makeVolume(ctx, n, lastUse)
	}
	v := *b.full
	b.full = nil
	if err := v.removeStates(); err != nil {
		return v, err
	}
	for k := range n {
		if err := context.Cause(ctx); err != nil {
			return v, err
		}
		d := fillerDigest(k)
		if err := errors.Join(
			os.Chtimes(v.data(d), lastUse, lastUse),
			os.Chtimes(v.link(fillerRepository(k), "_layers", d), lastUse, lastUse),
		); err != nil {
			return v, err
		}
	}
	return v, nil
}

// removeStates deletes the files of servers other than the content.
func (v volume) removeStates() error {
	entries, err := os.ReadDir(v.root)
	for _, entry := range entries {
		if entry.Name() != contentDir {
			err = errors.Join(err, os.RemoveAll(filepath.Join(v.root, entry.Name())))
		}
	}
	return err
}

// data returns the path of the content of a digest.
func (v volume) data(d digest.Digest) string {
	encoded := d.Encoded()
	return filepath.Join(v.root, contentDir, "registry", "v2", "blobs", "sha256", encoded[:2], encoded, "data")
}

// link returns the path of the link of a digest in a repository.
func (v volume) link(repository, kind string, d digest.Digest) string {
	return filepath.Join(v.root, contentDir, "registry", "v2", "repositories", repository, kind, "sha256", d.Encoded(), "link")
}

// checkNoFiller returns an error if one of the n generated blobs exists.
func (v volume) checkNoFiller(n int) error {
	for k := range n {
		if _, err := os.Stat(v.data(fillerDigest(k))); !errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("blob %d of %d still exists", k, n), err)
		}
	}
	return nil
}

// startOnFullVolume measures the time from the start of the process to the first cache hit, and for this server to the
// complete eviction index. The folders of the volume are in the cache of the kernel.
func startOnFullVolume(ctx context.Context, b *bench) error {
	n := 100_000
	if b.quick {
		n = 2000
	}
	v, err := b.fullVolume(ctx, n)
	if err != nil {
		return err
	}
	for range b.rounds {
		for _, name := range caches {
			if err := b.startOn(ctx, name, v, fmt.Sprintf("start/blobs=%d", n)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (b *bench) startOn(ctx context.Context, name string, v volume, series string) (err error) {
	e, err := b.engine(ctx, name, engineOptions{Root: v.root})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	c, err := newClient(e.url, e.ca)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err := c.manifest(ctx, v.image.repository, v.image.digest); err != nil {
		return err
	}
	b.results.Add(series, name, "first-200-s", time.Since(e.started).Seconds())
	if name == stock {
		return nil // the stock registry has no index
	}
	return poll(ctx, time.Minute, func() error {
		at, err := e.logged("Indexed the volume")
		if err == nil {
			b.results.Add(series, name, "indexed-s", at.Sub(e.started).Seconds())
		}
		return err
	})
}

// logged returns the time of the first log entry with the message, or an error if there is none.
func (e *engine) logged(message string) (time.Time, error) {
	f, err := os.Open(e.logFile)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var line struct {
			Time    time.Time `json:"time"`
			Message string    `json:"msg"`
		}
		// The last line may be incomplete.
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Message == message {
			return line.Time, nil
		}
	}
	return time.Time{}, errors.Join(fmt.Errorf("not logged: %s", message), lines.Err())
}

// metric returns the value of a metric of this server: the sum over all labels, or the value for the labels in the name.
func (e *engine) metric(ctx context.Context, name string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.debugURL+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 2 || fields[0] != name && !strings.HasPrefix(fields[0], name+"{") {
			continue
		}
		value, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return 0, err
		}
		sum += value
	}
	return sum, lines.Err()
}
