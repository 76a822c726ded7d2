// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/registry-cache/extension/test/bench/result"
	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// bench contains the programs, the upstream and the results that all scenarios share.
type bench struct {
	dir      string // folder of this run
	programs map[string]string
	rounds   int
	quick    bool
	origin   *origin
	results  result.Run
	full     *volume          // of fullVolume, after its first call
	seed     uint64           // of the last generated image, so that no two images share a blob
	testbed  *testbed.Testbed // with the default configuration of the product; nil before the cluster exists
}

// generate builds the programs and starts the upstream. The caller calls close.
func generate(ctx context.Context, output string, rounds int, quick bool) (*bench, error) {
	output, err := filepath.Abs(output)
	if err != nil {
		return nil, err
	}
	b := &bench{
		dir:      filepath.Join(output, time.Now().UTC().Format("20060102T150405Z")),
		programs: map[string]string{},
		rounds:   rounds,
		quick:    quick,
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	for _, p := range []struct{ name, dir, path string }{
		{"registry-cache", ".", "./cmd/registry-cache"},
		{"stock", filepath.Join("hack", "distribution"), "tool"},
		{"upstream", ".", "./test/testbed/cmd/upstream"},
	} {
		fmt.Println("building", p.name)
		b.programs[p.name] = filepath.Join(output, "programs", p.name)
		if err := os.MkdirAll(filepath.Dir(b.programs[p.name]), 0o755); err != nil {
			return nil, err
		}
		if err := gobuild.Build(ctx, gobuild.Options{Dir: p.dir, Packages: []string{p.path}, Output: b.programs[p.name]}); err != nil {
			return nil, err
		}
	}
	if b.results.Host, err = describeHost(ctx); err != nil {
		return nil, err
	}
	b.results.Rounds, b.results.Quick = rounds, quick
	if b.origin, err = startOrigin(ctx, b.programs["upstream"], filepath.Join(b.dir, "upstream")); err != nil {
		return nil, err
	}
	return b, nil
}

// close stops the processes that generate started, and deletes the content of the upstream. It also deletes the logs of a
// successful run.
func (b *bench) close(succeeded bool) error {
	err := errors.Join(b.origin.stop(), os.RemoveAll(filepath.Join(b.dir, "upstream")), os.RemoveAll(filepath.Join(b.dir, "volume")))
	if !succeeded {
		return err
	}
	logs, globErr := filepath.Glob(filepath.Join(b.dir, "*.log"))
	err = errors.Join(err, globErr)
	for _, log := range logs {
		err = errors.Join(err, os.Remove(log))
	}
	return err
}

// origin is the upstream, as a separate process.
type origin struct {
	*process
	admin *upstream.Client
	url   string
	ca    string // PEM file
}

func startOrigin(ctx context.Context, program, dir string) (*origin, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	o := &origin{
		url:   "https://" + ports[0],
		ca:    filepath.Join(dir, "ca", "ca.crt"),
		admin: upstream.NewClient("http://" + ports[1]),
	}
	o.process, err = startProcess(ctx, processOptions{
		Program: program,
		Args:    []string{"-data-dir", filepath.Join(dir, "data"), "-ca-dir", filepath.Dir(o.ca), "-listen", ports[0], "-admin", ports[1]},
		CPUs:    otherCPUs,
		LogFile: dir + ".log",
	})
	if err != nil {
		return nil, err
	}
	if err := poll(ctx, startTimeout, func() error { return o.admin.Healthy(ctx) }); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the upstream: %w", err), o.stop())
	}
	return o, nil
}

// image is an image of the upstream.
type image struct {
	repository, tag, digest string
	blobs                   []blob // first the config, then the layers
}

type blob struct {
	digest string
	size   int64
}

// layer returns the last layer. Most images have only one.
func (i image) layer() blob { return i.blobs[len(i.blobs)-1] }

// push creates a new image in the upstream with layers of these sizes, in bytes.
func (b *bench) push(ctx context.Context, layers ...int64) (image, error) {
	b.seed++
	i := image{repository: fmt.Sprintf("library/image-%d", b.seed), tag: "v1"}
	var err error
	i.digest, err = b.origin.admin.Generate(ctx, "docker.io/"+i.repository+":"+i.tag, images.Spec{Seed: b.seed, LayerSizes: layers})
	if err != nil {
		return image{}, err
	}
	c, err := newClient(b.origin.url, b.origin.ca)
	if err != nil {
		return image{}, err
	}
	defer c.close()
	i.blobs, err = c.manifest(ctx, i.repository, i.digest)
	return i, err
}

// repeated returns n elements of value size.
func repeated(n int, size int64) []int64 {
	sizes := make([]int64, n)
	for i := range sizes {
		sizes[i] = size
	}
	return sizes
}
