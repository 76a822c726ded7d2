// SPDX-License-Identifier: Apache-2.0

// Package nodeimage makes the image that the cluster's nodes run: the published kindest/node where it can be pulled,
// otherwise one that is built here from Debian packages and Go modules alone. Either gets the testbed's own files of
// hack/kind/overlay, that is the guard that keeps packets inside of the testbed, the pod network and containerd's
// settings for restricted hosts.
package nodeimage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Published is the node image that the release notes of kind v0.33.0 give for Kubernetes 1.34, the tag v1.34.11. kind
// supports a published image only with the release that lists it, and only by digest.
const Published = "docker.io/kindest/node@sha256:44e222ee2132dab25ff87301682f89eb82c7880ea3a1bf543bfe9708fd08d67d"

// Source as an override asks for an image that is built from source, without trying to pull the published one.
const Source = "source"

const (
	repository = "localhost/registry-cache-testbed/"
	// label marks the images that have the testbed's files. Its value is the hash of them.
	label = "registry-cache.testbed.overlay"
	// probeTimeout bounds how long a host without a way to the registry waits to learn that, pullTimeout the download
	// of some 400 MB.
	probeTimeout = 5 * time.Second
	pullTimeout  = 10 * time.Minute
)

// Options say which node image is wanted.
type Options struct {
	// Override is the reference of an image to use instead, pulled if the engine does not have it. An image without
	// the testbed's files, such as a kindest/node of another version, is not changed: it becomes the base of one that
	// has them. Source means an image that is built from source.
	Override string
	// Published is the published image to prefer; empty means the constant Published.
	Published string
}

// Ensure returns the reference of a node image in the engine's storage and makes it first where it is missing. Its tag
// is a hash of everything it is made of, so an image that exists is found within a second, without a network. A run that
// was interrupted can be repeated; a second one at the same time waits for the first.
//
// Building from source needs mmdebstrap, the host's Debian package sources and a Go module proxy, and takes about ten
// minutes on two cores, one minute if the programs are in workspace.CacheDir.
func Ensure(ctx context.Context, e *host.Engine, p *workspace.Progress, o Options) (string, error) {
	b, err := newBuilder(e, p)
	if err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(b.cache, "node-image.lock"), func() {
		p.Printf("another run is making the node image: waiting for it")
	})
	if err != nil {
		return "", err
	}
	ref, err := b.ensure(ctx, o)
	return ref, errors.Join(err, unlock())
}

func (b *builder) ensure(ctx context.Context, o Options) (string, error) {
	overlay, err := b.overlayHash()
	if err != nil {
		return "", err
	}
	if o.Override != "" && o.Override != Source {
		return b.override(ctx, o.Override, overlay)
	}
	if o.Published == "" {
		o.Published = Published
	}
	fromPublished := nodeTag(o.Published, overlay)
	if _, found := b.imageID(ctx, fromPublished); found && o.Override != Source {
		return fromPublished, nil
	}
	// A host of another distribution can run the published image, but build none.
	in, sourceErr := b.baseInputs(ctx)
	base := repository + "node-base:" + in.hash()
	fromSource := nodeTag(base, overlay)
	if _, found := b.imageID(ctx, fromSource); found && sourceErr == nil {
		return fromSource, nil
	}
	if o.Override != Source {
		pulled, err := b.pullPublished(ctx, o.Published)
		if err != nil {
			return "", err
		}
		if pulled {
			return fromPublished, b.addOverlay(ctx, o.Published, fromPublished, overlay)
		}
	}
	if sourceErr != nil {
		return "", sourceErr
	}
	if _, found := b.imageID(ctx, base); !found {
		if err := b.buildBase(ctx, base); err != nil {
			return "", err
		}
	}
	return fromSource, b.addOverlay(ctx, base, fromSource, overlay)
}

// override returns ref, or what is made of it if it lacks the testbed's files.
func (b *builder) override(ctx context.Context, ref, overlay string) (string, error) {
	id, found := b.imageID(ctx, ref)
	if !found {
		if err := b.pull(ctx, ref); err != nil {
			return "", fmt.Errorf("the node image %s is neither here nor can it be pulled: unset NODE_IMAGE to have one built: %w", ref, err)
		}
		if id, found = b.imageID(ctx, ref); !found {
			return "", fmt.Errorf("inspecting %s after it was pulled: not found", ref)
		}
	}
	out, err := b.engine.Run(ctx, nil, "image", "inspect", "--format", fmt.Sprintf("{{index .Config.Labels %q}}", label), ref)
	if err != nil {
		return "", err
	}
	if labelled(string(out)) {
		return ref, nil
	}
	derived := nodeTag(id, overlay)
	if _, found := b.imageID(ctx, derived); found {
		return derived, nil
	}
	return derived, b.addOverlay(ctx, ref, derived, overlay)
}

// pullPublished pulls the image if its registry answers, and tells whether it is there then. That it is not is normal
// and told in one line.
func (b *builder) pullPublished(ctx context.Context, ref string) (bool, error) {
	if _, found := b.imageID(ctx, ref); found {
		return true, nil
	}
	err := probe(ctx, ref, probeTimeout)
	if err == nil {
		err = b.pull(ctx, ref)
	}
	if ctx.Err() != nil {
		return false, err
	}
	if err != nil {
		b.progress.Printf("%s cannot be pulled here, so a node image is built from source", ref)
	}
	return err == nil, nil
}

func (b *builder) pull(ctx context.Context, ref string) error {
	return b.progress.Step("pulling "+ref, func() error {
		ctx, cancel := context.WithTimeout(ctx, pullTimeout)
		defer cancel()
		_, err := b.engine.Run(ctx, nil, "pull", "--quiet", ref)
		return err
	})
}

// probe asks the registry for the image's manifest, so that a host without a way to it does not wait for the engine's
// retries.
func probe(ctx context.Context, ref string, limit time.Duration) error {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return fmt.Errorf("reading the reference of the published node image: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err = remote.Head(parsed, remote.WithContext(ctx), remote.WithRetryBackoff(remote.Backoff{Steps: 1}))
	return err
}

// imageID returns the engine's id of an image, if it has it.
func (b *builder) imageID(ctx context.Context, ref string) (id string, found bool) {
	out, err := b.engine.Run(ctx, nil, "image", "inspect", "--format", "{{.Id}}", ref)
	if err != nil {
		// An engine that does not work fails with a better message at the next thing it is asked for.
		return "", false
	}
	return firstLine(out), true
}

// nodeTag names the image that has the overlay on the base, which is a reference or an id.
func nodeTag(base, overlay string) string {
	in := inputs{{"base", base}, {"overlay", overlay}}
	return repository + "node:" + in.hash()
}
