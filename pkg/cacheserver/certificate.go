// SPDX-License-Identifier: Apache-2.0

package cacheserver

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificateFile is a key pair that is read again when its files change, so that a rotation needs no restart.
type certificateFile struct {
	certFile, keyFile string
	log               *slog.Logger

	mu       sync.Mutex // guards the following fields
	loaded   *tls.Certificate
	modified time.Time // of the certificate that was tried last
}

func newCertificateFile(certFile, keyFile string, log *slog.Logger) (*certificateFile, error) {
	c := &certificateFile{certFile: certFile, keyFile: keyFile, log: log}
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("reading the certificate of the registry API: %w", err)
	}
	return c, nil
}

// get implements tls.Config.GetCertificate.
func (c *certificateFile) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		// The pair that was read before may still be right.
		c.log.Warn("Cannot read the certificate again", "error", err)
	}
	return c.loaded, nil
}

// load reads the files if the certificate has changed. The caller holds the lock, or has the only reference.
func (c *certificateFile) load() error {
	info, err := os.Stat(c.certFile)
	if err != nil {
		return err
	}
	if c.loaded != nil && info.ModTime().Equal(c.modified) {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	c.loaded, c.modified = &pair, info.ModTime()
	return nil
}
