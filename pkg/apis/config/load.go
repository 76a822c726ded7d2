// SPDX-License-Identifier: Apache-2.0

// Package config reads the configuration file of the extension's controller.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry"
)

// maxFileSize bounds what Load reads, in bytes. 1 MiB is what a ConfigMap or Secret can hold.
const maxFileSize = 1 << 20

// Load reads and parses the file of that path, of at most 1 MiB.
func Load(path string) (*v1alpha1.ControllerConfiguration, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the controller configuration: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading the controller configuration: %w", err)
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("reading the controller configuration %s: it is larger than %d bytes", path, maxFileSize)
	}
	configuration, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("parsing the controller configuration %s: %w", path, err)
	}
	return configuration, nil
}

// Default returns the configuration that holds without a file.
func Default() *v1alpha1.ControllerConfiguration {
	configuration := &v1alpha1.ControllerConfiguration{}
	v1alpha1.SetDefaults(configuration)
	return configuration
}

// Parse decodes data, YAML or JSON, strictly, fills in defaults and validates it.
func Parse(data []byte) (*v1alpha1.ControllerConfiguration, error) {
	var configuration v1alpha1.ControllerConfiguration
	document, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	if document[0] != '{' && string(document) != "null" {
		return nil, errors.New("want an object with apiVersion and kind")
	}
	if errs := registry.DecodeStrict(document, &configuration, nil); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	if configuration.APIVersion != v1alpha1.APIVersion || configuration.Kind != v1alpha1.Kind {
		return nil, fmt.Errorf("it is %q %q, want apiVersion: %s, kind: %s", configuration.APIVersion, configuration.Kind, v1alpha1.APIVersion, v1alpha1.Kind)
	}
	if strings.TrimSpace(configuration.CABundle) == "" {
		// The caches would not start with a bundle that has no certificate.
		configuration.CABundle = ""
	}
	v1alpha1.SetDefaults(&configuration)
	if errs := validate(&configuration); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return &configuration, nil
}
