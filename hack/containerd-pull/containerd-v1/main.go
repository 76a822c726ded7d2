// SPDX-License-Identifier: Apache-2.0

// Command containerd-v1 pulls an image with the client code of containerd 1.7, for one or more simulated nodes.
//
//	containerd-v1 --hosts /etc/containerd/certs.d [--clients 30] [--discard] docker.io/library/alpine:3.13.2
//	containerd-v1 --serve
//
// A pull has the same steps as in containerd's CRI plugin, without unpacking the layers. The result is a clients.Report
// on standard output. containerd's image_pull_progress_timeout is not implemented: a pull without progress ends at
// --timeout.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/content"
	"github.com/containerd/containerd/content/local"
	"github.com/containerd/containerd/images"
	"github.com/containerd/containerd/remotes"
	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/containerd/remotes/docker/config"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/registry-cache/extension/hack/containerd-pull/internal/clients"
)

func main() { os.Exit(clients.Main("github.com/containerd/containerd", pull)) }

// contentStore has the methods of containerd's content store that a pull calls.
type contentStore interface {
	content.Ingester
	content.Provider
}

func pull(ctx context.Context, o clients.Options, image *clients.Image) error {
	if o.ChunkSize != 0 {
		return errors.New("containerd 1.7 does not request layers in parts")
	}
	platform, err := platforms.Parse(o.Platform)
	if err != nil {
		return err
	}
	matcher := platforms.Only(platform)
	var store contentStore = new(discardStore)
	if o.Store != "" {
		if store, err = local.NewStore(o.Store); err != nil {
			return fmt.Errorf("opening the content store: %w", err)
		}
	}

	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: config.ConfigureHosts(ctx, config.HostOptions{
			HostDir: config.HostDirFromRoot(o.Hosts), Credentials: o.Credentials,
		}),
	})
	name, root, err := resolver.Resolve(ctx, o.Reference)
	if err != nil {
		return fmt.Errorf("resolving %s: %w", o.Reference, err)
	}
	image.Resolved(root)
	if o.Until == clients.StepResolve {
		return nil
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return fmt.Errorf("preparing to fetch %s: %w", name, err)
	}

	record := images.HandlerFunc(func(_ context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		switch {
		case images.IsManifestType(d.MediaType):
			image.FetchedManifest(d)
		case !images.IsIndexType(d.MediaType):
			image.FetchedBlob(d)
		}
		return nil, nil
	})
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), matcher), matcher, 1)
	skipBlobs := images.HandlerFunc(func(_ context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if o.Until == clients.StepManifests && !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) {
			return nil, images.ErrStopHandler
		}
		return nil, nil
	})
	handler := images.Handlers(skipBlobs, remotes.FetchHandler(store, fetcher), record, children)
	if err := images.Dispatch(ctx, handler, semaphore.NewWeighted(clients.MaxConcurrentDownloads), root); err != nil {
		return fmt.Errorf("fetching %s@%s: %w", o.Reference, root.Digest, err)
	}
	return nil
}
