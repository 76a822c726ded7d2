// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/registry-cache/extension/pkg/cacheserver/config"
)

// cache is a running cache server.
type cache struct {
	registry registry
	server   *server
}

// startCache starts a cache server with an empty volume for an upstream. Its files are in dir. It serves https if the
// upstream does, and requires no credentials.
func startCache(ctx context.Context, s *suite, upstream registry, dir string) (*cache, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	c := &cache{registry: registry{address: address, authority: upstream.authority}}
	cfg := config.Default()
	cfg.Upstream.Host, cfg.Upstream.RemoteURL = imageHost, upstream.url()
	cfg.Listen.Address, cfg.Debug.Address = address, "127.0.0.1:0"
	cfg.Storage.Root = filepath.Join(dir, "volume")
	// Each request for a tag contacts the upstream, so that pulls while it is stopped do not depend on the time of the pulls
	// before.
	cfg.Tags.RevalidateAfter = 0
	if a := upstream.authority; a != nil {
		cfg.Upstream.CAFile = a.caFile
		cfg.Listen.TLS = config.TLS{CertFile: a.certFile, KeyFile: a.keyFile}
	}
	if upstream.username != "" {
		cfg.Upstream.CredentialsDir = filepath.Join(dir, "credentials")
		if err := writeFiles(cfg.Upstream.CredentialsDir, map[string]string{"username": upstream.username, "password": upstream.password}); err != nil {
			return nil, err
		}
	}
	document, err := cfg.Marshal()
	if err := errors.Join(err, os.Mkdir(cfg.Storage.Root, 0o700)); err != nil {
		return nil, err
	}
	if err := writeFiles(dir, map[string]string{"cache.yaml": string(document)}); err != nil {
		return nil, err
	}
	c.server, err = startServer(ctx, dir, "cache", c.registry.answers, s.programs[cacheProgram].path, "serve", "--config", filepath.Join(dir, "cache.yaml"))
	return c, err
}
