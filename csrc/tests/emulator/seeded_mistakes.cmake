# Kernels with mistakes, made from the shipped ones by changing their text: each must be found by
# test_emulated_seeded.cpp. A changed line asks is_seeded(Mistake) at run time, so that one copy
# serves for all. A text that is no longer in the kernel is an error here: say what replaces it.
set(TOKEN_SEEDED_DIR ${CMAKE_CURRENT_BINARY_DIR}/seeded/weave/cuda)
file(GLOB TOKEN_SEEDED_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/weave/cuda/*)
foreach(source IN LISTS TOKEN_SEEDED_SOURCES)
    get_filename_component(name ${source} NAME)
    file(READ ${source} text_of_${name})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
endforeach()

# token_seed(file text replacement): every place of the text.
function(token_seed file text replacement)
    string(FIND "${text_of_${file}}" "${text}" place)
    if(place EQUAL -1)
        message(FATAL_ERROR "seeded mistake: csrc/weave/cuda/${file} no longer holds '${text}': "
            "change csrc/tests/emulator/seeded_mistakes.cmake")
    endif()
    string(REPLACE "${text}" "${replacement}" changed "${text_of_${file}}")
    set(text_of_${file} "${changed}" PARENT_SCOPE)
endfunction()

token_seed(two_shot.cuh "barrier.arrive_and_wait(Phase::kEntry)"
    "(is_seeded(Mistake::kNoEntryBarrier) || barrier.arrive_and_wait(Phase::kEntry))")
token_seed(two_shot.cuh "barrier.arrive_and_wait(Phase::kExit)"
    "(is_seeded(Mistake::kNoExitBarrier) || barrier.arrive_and_wait(Phase::kExit))")
token_seed(rank_barrier.cuh "        __syncthreads();
        const int peer"
    "        if (!is_seeded(Mistake::kNoSyncBeforeRelease)) { __syncthreads(); }
        const int peer")
token_seed(rank_barrier.cuh "        __syncthreads();
        order_aliases();
        for"
    "        if (!is_seeded(Mistake::kNoSyncAfterAcquire)) { __syncthreads(); }
        order_aliases();
        for")
token_seed(reach.cuh "ptx::st_release_sys("
    "(is_seeded(Mistake::kRelaxedRelease) ? ptx::st_relaxed_sys : as_release_sys)(")
token_seed(reach.cuh "ptx::multimem_st_release_sys("
    "(is_seeded(Mistake::kRelaxedRelease) ? as_multimem_relaxed : ptx::multimem_st_release_sys)(")
token_seed(rank_barrier.cuh "ptx::ld_acquire_sys(&line.epoch)"
    "(is_seeded(Mistake::kRelaxedAcquire) ? ptx::ld_relaxed_sys(&line.epoch) : ptx::ld_acquire_sys(&line.epoch))")
token_seed(rank_barrier.cuh "blocks[block_].epoch = epoch_;"
    "blocks[block_].epoch = is_seeded(Mistake::kEpochReuse) ? first_epoch_ : epoch_;")
token_seed(rank_barrier.cuh "static_cast<int32_t>(seen - epoch_) >= 0"
    "(is_seeded(Mistake::kPlainEpochCompare) ? seen >= epoch_ : static_cast<int32_t>(seen - epoch_) >= 0)")
token_seed(rank_barrier.cuh "ptx::fence_proxy_alias();"
    "if (!is_seeded(Mistake::kNoAliasFence)) { ptx::fence_proxy_alias(); }")
token_seed(row_total.cuh "ptx::bar_sync(1 + group_.index"
    "if (!is_seeded(Mistake::kNoRowBarrier)) ptx::bar_sync(1 + group_.index")
token_seed(row_total.cuh "place_ ^= 1;" "place_ ^= is_seeded(Mistake::kOneRowPlace) ? 0 : 1;")
token_seed(one_shot.cuh "barrier.next_epoch() % 2"
    "(is_seeded(Mistake::kOneStagingHalf) ? 0 : barrier.next_epoch() % 2)")

foreach(source IN LISTS TOKEN_SEEDED_SOURCES)
    get_filename_component(name ${source} NAME)
    # Written only when it differs: a configure step must not recompile them all.
    file(CONFIGURE OUTPUT ${TOKEN_SEEDED_DIR}/${name} CONTENT "${text_of_${name}}" @ONLY)
endforeach()
