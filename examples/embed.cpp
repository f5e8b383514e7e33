// A bundle in a C++ program, with llama.h and nlohmann/json.hpp: embed BUNDLE "Tell me about the sea."
// c++ -std=c++17 embed.cpp -lllama -o embed
#include <fstream>
#include <iostream>
#include <vector>
#include "llama.h"
#include "nlohmann/json.hpp"

int main(int argc, char ** argv) {
    if (argc != 3) return std::cerr << "usage: embed BUNDLE QUESTION\n", 2;
    const std::string folder = argv[1], question = argv[2];
    const auto bundle = nlohmann::json::parse(std::ifstream(folder + "/edgeslm-bundle.json"));
    const auto & flat = bundle["template"];
    std::string prompt = flat.is_null() ? question : flat["start"].get<std::string>() + flat["default_system"].get<std::string>();
    if (!flat.is_null()) {
        for (const auto & segment : flat["roles"]["user"]) prompt += segment.value("text", question); // "trimmed": strip it
        prompt += flat["generation"].get<std::string>();
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model * model = llama_model_load_from_file((folder + "/" + bundle["model"]["file"].get<std::string>()).c_str(), llama_model_default_params());
    if (!model) return std::cerr << "llama.cpp cannot load the model\n", 1;
    auto params = llama_context_default_params();
    params.n_ctx = params.n_batch = bundle["generation"]["context"];
    llama_context * context = llama_init_from_model(model, params);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::vector<llama_token> ids(prompt.size() + 8);
    ids.resize(llama_tokenize(vocab, prompt.data(), prompt.size(), ids.data(), ids.size(), false, true));
    const auto & begin = bundle["tokenizer"]["begin_id"];
    if (!begin.is_null() && (ids.empty() || ids[0] != begin)) ids.insert(ids.begin(), begin.get<llama_token>());
    llama_sampler * greedy = llama_sampler_init_greedy();
    const std::vector<llama_token> stops = bundle["stop_ids"];
    auto batch = llama_batch_get_one(ids.data(), ids.size());
    for (int left = bundle["generation"]["max_new"]; left-- && llama_decode(context, batch) == 0;) {
        llama_token token = llama_sampler_sample(greedy, context, -1);
        if (std::find(stops.begin(), stops.end(), token) != stops.end()) break;
        char piece[256];
        std::cout.write(piece, std::max(0, llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false))).flush();
        batch = llama_batch_get_one(&(ids[0] = token), 1);
    }
    std::cout << "\n";
}
